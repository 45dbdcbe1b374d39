/**
 * The token (a UUID) that the users of a physical function and of its virtual functions must share, and the text of
 * GET_DEVICE_FD that carries it: `0000:01:10.0 vf_token=14d63f20-8445-11ea-8900-1f9ce7d5650d`.
 */
import { randomBytes } from 'node:crypto';
import { Errno } from '../../../lib/errno.ts';

const OPTION = 'vf_token=';
const UUID_LENGTH = 36;
const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}/i;

export class VfToken {
  #uuid: Uint8Array;
  /** Open virtual functions. */
  users = 0;

  constructor(make: () => Uint8Array = () => randomBytes(16)) {
    this.#uuid = make();
  }

  set(uuid: Uint8Array): void {
    this.#uuid = uuid.slice();
  }

  /** EACCES: no token, or another one. */
  check(uuid: Uint8Array | undefined): void {
    if (uuid === undefined) throw new Errno('EACCES', 'the device needs the VF token of its physical function');
    if (!uuid.every((byte, i) => byte === this.#uuid[i])) throw new Errno('EACCES', 'the VF token is another one');
  }
}

/** The 16 bytes of a UUID as `uuid_parse` gives them. */
export function parseUuid(text: string): Uint8Array {
  if (!UUID.test(text)) throw new Errno('EINVAL', `'${text}' is not a UUID`);
  const digits = text.slice(0, UUID_LENGTH).replaceAll('-', '');
  return Uint8Array.from({ length: 16 }, (_, i) => Number.parseInt(digits.slice(2 * i, 2 * i + 2), 16));
}

/** Undefined: the text names another device. EINVAL: it names this one with options that are unknown, double or malformed. */
export function parseDeviceText(name: string, text: string): { token: Uint8Array | undefined } | undefined {
  if (!text.startsWith(name)) return undefined;
  let rest = text.slice(name.length);
  if (rest !== '' && !rest.startsWith(' ')) return undefined;
  let token: Uint8Array | undefined;
  for (;;) {
    rest = rest.replace(/^ +/, '');
    if (rest === '') return { token };
    if (token !== undefined || !rest.startsWith(OPTION))
      throw new Errno('EINVAL', `'${rest}' is not an option of ${name}`);
    token = parseUuid(rest.slice(OPTION.length));
    rest = rest.slice(OPTION.length + UUID_LENGTH);
  }
}
