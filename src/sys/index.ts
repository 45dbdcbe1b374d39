/** The operating system under the box. */
export { EAGAIN } from './constants.ts';
export { createEventfd, eventfdIdentity, readEventfd, signalEventfd } from './eventfd.ts';
export {
  closeDescriptor,
  duplicate,
  inodeOf,
  isWritable,
  linkOf,
  makeSocketNode,
  openMapped,
  sealsOf,
  statusWith,
  textFile,
} from './files.ts';
export { SystemError } from './libc.ts';
export { MappedFile } from './mapped-file.ts';
export { Region } from './memory.ts';
export {
  abstractName,
  accept,
  connectTo,
  LONGEST_PATH,
  listenOn,
  namedPair,
  peerOf,
  receive,
  receiveDescriptors,
  SCM_MAX_FD,
  send,
  sendDescriptors,
} from './messages.ts';
export { type FileIdentity, howMapped } from './peer-mappings.ts';
export { EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLRDHUP, Poller, type PollSource } from './poller.ts';
export {
  capabilities,
  credentials,
  findMapping,
  type Mapping,
  memlockLimit,
  ProcessMemory,
  programName,
  raiseDescriptorLimit,
} from './process-memory.ts';
export { SharedFileMap } from './shared-file-map.ts';
export { NativeShared } from './shared-memory.ts';
export {
  acceptStream,
  clearStalePath,
  connectStream,
  kindOfSocket,
  listenOnStream,
  type PathState,
  receiveStream,
  sendStream,
  sendStreamDescriptors,
  setReceiveTimeout,
  streamPair,
  waitFor,
  waitForAny,
} from './streams.ts';
