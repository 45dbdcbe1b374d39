/**
 * `vfiobox serve`: one device for a VMM, from the main thread: signals, the socket's file and the exit status. The server works in a thread
 * of its own and never waits for this one.
 */
import { rmSync, writeSync } from 'node:fs';
import { Worker } from 'node:worker_threads';
import type { ServeNews, ServeRequest } from './serve-thread.ts';

/** What ends a server before it listens. The message is for a person. */
export class ServeRefused extends Error {}

const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

/** What `--print-capabilities` says, in the manner of the VMMs' backend programs. */
export const backendCapabilities = { type: 'pci', features: ['socket-path', 'fd'] };

/**
 * Serves until a signal, or the end of an inherited connection. Resolves with the exit status; `listening` is told when clients can
 * connect. ServeRefused.
 */
export async function serve(request: ServeRequest, listening: (device: string) => void = () => {}): Promise<number> {
  const thread = new Worker(new URL('./serve-thread.js', import.meta.url), {
    resourceLimits: { maxYoungGenerationSizeMb: 64 },
    trackUnmanagedFds: false,
  });
  const { where } = request;
  let stop = -1;
  let isStopping = false;
  const end = (): void => {
    isStopping = true;
    if (stop >= 0) writeSync(stop, new Uint8Array([1, 0, 0, 0, 0, 0, 0, 0]));
  };
  const unlink = (): void => {
    if ('path' in where && stop >= 0) rmSync(where.path, { force: true });
  };
  for (const signal of SIGNALS) process.on(signal, end);
  try {
    return await new Promise<number>((resolve, reject) => {
      thread.on('message', (news: ServeNews) => {
        if (news.kind === 'refused') reject(new ServeRefused(news.message));
        else if (news.kind === 'listening') {
          stop = news.stop;
          listening(news.device);
          if (isStopping) end();
        } else {
          unlink();
          if (news.failure === undefined) resolve(0);
          else reject(new ServeRefused(news.failure));
        }
      });
      thread.on('error', (error) => {
        unlink();
        reject(error);
      });
      thread.postMessage(request);
    });
  } finally {
    for (const signal of SIGNALS) process.removeListener(signal, end);
    await thread.terminate();
  }
}
