/** The thread in which a server runs: takes its options by message, says when it listens, and ends when it is told to. */

import { existsSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import { parentPort } from 'node:worker_threads';
import { type DeviceModel, type HostConfig, HostFileError, loadHostOrDump, Machine } from '../../host/index.ts';
import {
  clearStalePath,
  closeDescriptor,
  createEventfd,
  kindOfSocket,
  LONGEST_PATH,
  listenOnStream,
  NativeShared,
  raiseDescriptorLimit,
  readEventfd,
  SystemError,
} from '../../sys/index.ts';
import { openCharacter } from '../run/character.ts';
import { EventLoop } from '../run/event-loop.ts';
import { type CallRecord, explain, say, TraceError, TraceFile } from '../run/reporter.ts';
import { CaptureError, CaptureFile } from './capture-file.ts';
import type { DmaMode } from './dma.ts';
import { findModel, oneLine, readModelOptions } from './model-file.ts';
import { ServedDevice, ServeError } from './served-device.ts';
import { VfioUserServer } from './server.ts';
import type { SessionReports } from './session-options.ts';

export interface ServeRequest {
  /** A host file or preset and the function of it that is served, or a model. */
  readonly what:
    | { readonly host: string; readonly device: string }
    | { readonly model: string; readonly options?: readonly string[] };
  /** A path to listen on, or an inherited socket. */
  readonly where: { readonly path: string } | { readonly fd: number };
  readonly dma: DmaMode;
  readonly strictUnmap: boolean;
  /** Microseconds that are spent looking for the next message before sleeping. */
  readonly spin?: number | undefined;
  readonly explain: boolean;
  readonly trace: string | undefined;
  /** A file for all messages, to be read by Wireshark. */
  readonly pcap?: string | undefined;
}

export type ServeNews =
  /** `stop`: an eventfd that ends the server when it is written to. */
  | { readonly kind: 'listening'; readonly stop: number; readonly device: string }
  /** It cannot start; one line for a person. */
  | { readonly kind: 'refused'; readonly message: string }
  | { readonly kind: 'ended'; readonly failure: string | undefined };

/** A machine with one device of its own behind a root port, where it can be reset. */
const MODEL_PLACE = '0000:01:00.0';

function hostOfModel(model: string, options: Readonly<Record<string, unknown>>): HostConfig {
  return {
    name: model,
    iommu: { units: [{ name: 'dmar0', preset: 'vtd-legacy-sc' }] },
    functions: [
      { at: '00:01.0', model: 'root-port', secondary: 1 },
      { at: '01:00.0', model, driver: 'vfio-pci', options },
    ],
  };
}

/** The socket that is served: it listens, or it is the one connection. ServeError. */
function openSocket(where: ServeRequest['where']): { fd: number; isListening: boolean } {
  if ('fd' in where) {
    const kind = kindOfSocket(where.fd);
    if (kind === undefined) throw new ServeError(`descriptor ${where.fd} is not an open socket`);
    return { fd: where.fd, isListening: kind === 'listening' };
  }
  const { path } = where;
  const length = Buffer.byteLength(path);
  if (length > LONGEST_PATH) {
    throw new ServeError(`the socket path has ${length} bytes, the system allows ${LONGEST_PATH}: '${path}'`);
  }
  const folder = dirname(resolve(path));
  if (!existsSync(folder)) throw new ServeError(`there is no folder '${folder}' for the socket`);
  const state = clearStalePath(path);
  if (state === 'taken') throw new ServeError(`another server listens on '${path}'`);
  if (state === 'not a socket') throw new ServeError(`'${path}' exists and is not a socket`);
  try {
    return { fd: listenOnStream(path), isListening: true };
  } catch (error) {
    if (error instanceof SystemError) throw new ServeError(`cannot listen on '${path}': ${error.code}`);
    throw error;
  }
}

class ServeThread {
  readonly stop = createEventfd();
  readonly device: ServedDevice;
  readonly #loop = new EventLoop();
  readonly #server: VfioUserServer;
  readonly #stopSlot: number;
  #trace: TraceFile | undefined;
  #capture: CaptureFile | undefined;
  #failure: string | undefined;

  constructor(request: ServeRequest, config: HostConfig, address: string, models: ReadonlyMap<string, DeviceModel>) {
    raiseDescriptorLimit();
    if (request.trace !== undefined) this.#trace = new TraceFile(request.trace, () => this.#loop.now());
    if (request.pcap !== undefined) this.#capture = new CaptureFile(request.pcap);
    const machine = new Machine(config, {
      clock: this.#loop,
      allocateShared: (name, length) => new NativeShared(name, length),
      log: (text) => say(`vfiobox: ${text}\n`),
      models,
      openCharacter: (target) => openCharacter(this.#loop, target),
      dmaMiss: (name, page) => name === address && this.#server.miss(page),
    });
    this.#stopSlot = this.#loop.add(this.stop, { ready: () => readEventfd(this.stop) > 0 && this.#loop.stop() });
    this.device = new ServedDevice(machine, this.#loop, address);
    const options = {
      mode: request.dma,
      strictUnmap: request.strictUnmap,
      spin: request.spin ?? 0,
      stop: this.stop,
      known: 1,
    };
    this.#server = new VfioUserServer(this.device, this.#loop, options, this.#reports(request.explain));
    this.#loop.onError = (error) => {
      say(
        `vfiobox: internal error; the client's connection is closed\n${error instanceof Error ? error.stack : error}\n`,
      );
    };
    this.#loop.onIdle = () => this.#flush();
    const { fd, isListening } = openSocket(request.where);
    if (isListening) this.#server.listen(fd);
    else {
      this.#server.serve(fd);
      // An inherited connection is the only one.
      this.#server.onClientGone = () => this.#loop.stop();
    }
    this.#trace?.start();
  }

  /** Serves until `stop` is written to. Returns why it did not go well. */
  run(): string | undefined {
    this.#loop.run();
    this.#server.close();
    this.device.close();
    try {
      this.#trace?.close();
      this.#capture?.close();
    } catch (error) {
      this.#traceFailed(error);
    }
    this.#loop.remove(this.stop, this.#stopSlot);
    this.#loop.close();
    return this.#failure;
  }

  #reports(isExplaining: boolean): SessionReports {
    const trace = this.#trace;
    const closed = (why: string): void => say(`vfiobox: the connection was closed: ${why}\n`);
    const notice = (text: string): void => say(`vfiobox: ${text}\n`);
    const capture = this.#capture;
    const taps: SessionReports =
      capture === undefined
        ? { closed, notice }
        : {
            closed,
            notice,
            tap: (fromClient, message, descriptors) => {
              capture.message(fromClient, message, descriptors);
              if (capture.isLarge) this.#flush();
            },
          };
    if (!isExplaining && trace === undefined) return taps;
    return {
      ...taps,
      message: ({ command, details, result, why }) => {
        const file = this.device.name;
        const record: CallRecord = { program: 'client', pid: 0, call: command, file, details, result, why };
        if (isExplaining && result < 0) say(explain(record));
        if (trace === undefined) return;
        trace.call(record);
        if (trace.isLarge) this.#flush();
      },
    };
  }

  #flush(): void {
    try {
      this.#trace?.flush();
      this.#capture?.flush();
    } catch (error) {
      this.#traceFailed(error);
    }
  }

  #traceFailed(error: unknown): void {
    if (!(error instanceof TraceError || error instanceof CaptureError)) throw error;
    this.#failure ??= error.message;
  }
}

const port = parentPort!;
const tell = (news: ServeNews): void => port.postMessage(news);

async function start(request: ServeRequest): Promise<ServeThread> {
  const { what } = request;
  if ('host' in what) {
    const address = what.device.length === 7 ? `0000:${what.device}` : what.device;
    return new ServeThread(request, loadHostOrDump(what.host), address, new Map());
  }
  const { model, models } = await findModel(what.model);
  const options = readModelOptions(model, what.options ?? []);
  return new ServeThread(request, hostOfModel(model.name, options), MODEL_PLACE, models);
}

port.once('message', (request: ServeRequest) => {
  start(request).then(
    (thread) => {
      tell({ kind: 'listening', stop: thread.stop, device: thread.device.name });
      tell({ kind: 'ended', failure: thread.run() });
      closeDescriptor(thread.stop);
    },
    (error: unknown) => {
      const isExpected =
        error instanceof ServeError ||
        error instanceof HostFileError ||
        error instanceof TraceError ||
        error instanceof CaptureError ||
        error instanceof SystemError;
      const message = isExpected ? error.message : `internal error: ${oneLine(error)}`;
      tell({ kind: 'refused', message });
    },
  );
});
