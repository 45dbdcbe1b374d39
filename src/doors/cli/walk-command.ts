/** `vfiobox walk`: what the IOMMU does with one address, step by step. */
import { HostFileError, loadHostOrDump, type WalkReport, walkLines, walkOf } from '../../host/index.ts';
import { Errno } from '../../lib/errno.ts';
import type { BoxStreams } from './box-commands.ts';
import { build } from './host-commands.ts';

export interface WalkRequest {
  readonly device: string;
  readonly pasid: number;
  readonly iova: bigint;
}

/** The request of a command line; a text says what is wrong with it. */
export function walkRequest(device: string, pasid: string | undefined, iova: string): WalkRequest | string {
  if (!/^(?:[0-9a-f]{4}:)?[0-9a-f]{2}:[01][0-9a-f]\.[0-7]$/i.test(device)) {
    return `'${device}' is no address of a function: expected one such as 0000:00:04.0`;
  }
  if (!/^(?:0x[0-9a-f]{1,16}|\d{1,20})$/i.test(iova)) return `'${iova}' is no IOVA: expected a number such as 0x1000`;
  if (pasid !== undefined && !/^(?:0x[0-9a-f]{1,5}|\d{1,7})$/i.test(pasid)) return `'${pasid}' is no PASID`;
  return { device: device.toLowerCase(), pasid: pasid === undefined ? -1 : Number(pasid), iova: BigInt(iova) };
}

/** Walks in the machine of a host file as it is before any program runs; the result is the exit status. */
export function walkInHost(
  host: string,
  request: WalkRequest,
  isJson: boolean,
  out: (text: string) => void,
  fail: (message: string) => number,
): number {
  try {
    const report = walkOf(build(loadHostOrDump(host)), request.device, request.pasid, request.iova);
    out(walkText(report, isJson));
    return 0;
  } catch (error) {
    if (error instanceof HostFileError) return fail(error.message);
    if (error instanceof Errno) return fail(error.why);
    throw error;
  }
}

/** Walks in a running box. */
export async function walkInBox(
  box: string,
  { device, pasid, iova }: WalkRequest,
  isJson: boolean,
  streams: BoxStreams,
): Promise<number> {
  const { askBox } = await import('./box-commands.ts');
  const given = { function: device, pasid, iova: `0x${iova.toString(16)}` };
  const show = (report: WalkReport): readonly string[] => walkText(report, isJson).trimEnd().split('\n');
  return askBox('walk', given, { box }, streams, show);
}

export function walkText(report: WalkReport, isJson: boolean): string {
  return isJson ? `${JSON.stringify(report, null, 2)}\n` : `${walkLines(report).join('\n')}\n`;
}
