/** The thread in which a box runs: takes its options by message, says when it listens, and what was left at its end. */
import { parentPort } from 'node:worker_threads';
import { HostFileError, loadHostOrDump } from '../../host/index.ts';
import { SystemError } from '../../sys/index.ts';
import { Box, type BoxAddress, type BoxEnd, type BoxOptions } from './box.ts';
import { TraceError } from './reporter.ts';

export type BoxRequest = Omit<BoxOptions, 'host'> & { readonly host: string };

export type BoxNews =
  | { readonly kind: 'listening'; readonly address: BoxAddress }
  /** It cannot start; one line for a person. */
  | { readonly kind: 'refused'; readonly message: string }
  | { readonly kind: 'ended'; readonly end: BoxEnd };

const port = parentPort!;
const tell = (news: BoxNews): void => port.postMessage(news);

port.once('message', (request: BoxRequest) => {
  let box: Box;
  try {
    box = new Box({ ...request, host: loadHostOrDump(request.host) });
  } catch (error) {
    if (error instanceof HostFileError || error instanceof TraceError || error instanceof SystemError) {
      tell({ kind: 'refused', message: error.message });
      return;
    }
    throw error;
  }
  tell({ kind: 'listening', address: box.address });
  tell({ kind: 'ended', end: box.run() });
});
