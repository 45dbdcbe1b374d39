/** `vfiobox decode`: the IOMMU faults and table dumps of a kernel log, in words. */
import { readFileSync, statSync } from 'node:fs';
import { decodeFaultLog, faultReportLines } from '../../host/index.ts';

/** A log that is longer is not a paste. */
const MAX_BYTES = 64 * 1024 * 1024;

/** Runs the command on a file, or on the standard input for `-`; the result is the exit status. */
export function decodeCommand(
  file: string,
  isJson: boolean,
  out: (text: string) => void,
  fail: (message: string) => number,
): number {
  let text: string;
  try {
    if (file !== '-' && statSync(file).size > MAX_BYTES)
      return fail(`${file} is larger than 64 MiB: cut out the lines with DMAR or AMD-Vi`);
    text = readFileSync(file === '-' ? 0 : file, 'utf8');
  } catch (error) {
    return fail(`${file === '-' ? 'standard input' : file} cannot be read: ${(error as Error).message}`);
  }
  const report = decodeFaultLog(text);
  if (report.faults.length === 0 && report.problems.length === 0) {
    return fail(
      'no IOMMU fault in this text: expected lines such as "DMAR: [DMA Read NO_PASID] Request device …" or "AMD-Vi: Event logged [IO_PAGE_FAULT …"',
    );
  }
  out(isJson ? `${JSON.stringify(report, null, 2)}\n` : `${faultReportLines(report).join('\n')}\n`);
  return 0;
}
