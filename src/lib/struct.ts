/**
 * C structures as tables.
 *
 * `struct('name', { field: type, … })` computes the layout of the x86-64 C ABI once and yields readers and writers; the TypeScript
 * type is inferred. Little-endian. Whoever reads has checked the length before: a RangeError from here is a bug, not bad input.
 */

/** How one member is stored. `size` and `align` in bytes. */
export interface MemberType<T> {
  readonly size: number;
  readonly align: number;
  get(view: DataView, offset: number): T;
  set(view: DataView, offset: number, value: T): void;
}

export const u8: MemberType<number> = {
  size: 1,
  align: 1,
  get: (view, offset) => view.getUint8(offset),
  set: (view, offset, value) => view.setUint8(offset, value),
};
export const u16: MemberType<number> = {
  size: 2,
  align: 2,
  get: (view, offset) => view.getUint16(offset, true),
  set: (view, offset, value) => view.setUint16(offset, value, true),
};
export const u32: MemberType<number> = {
  size: 4,
  align: 4,
  get: (view, offset) => view.getUint32(offset, true),
  set: (view, offset, value) => view.setUint32(offset, value, true),
};
export const s32: MemberType<number> = {
  size: 4,
  align: 4,
  get: (view, offset) => view.getInt32(offset, true),
  set: (view, offset, value) => view.setInt32(offset, value, true),
};
export const u64: MemberType<bigint> = {
  size: 8,
  align: 8,
  get: (view, offset) => view.getBigUint64(offset, true),
  set: (view, offset, value) => view.setBigUint64(offset, value, true),
};

/** A fixed array of bytes, read as a copy. */
export function bytes(length: number): MemberType<Uint8Array> {
  return {
    size: length,
    align: 1,
    get: (view, offset) => new Uint8Array(view.buffer, view.byteOffset + offset, length).slice(),
    set: (view, offset, value) =>
      new Uint8Array(view.buffer, view.byteOffset + offset, length).set(value.subarray(0, length)),
  };
}

/** A fixed array of a member type. */
export function array<T>(type: MemberType<T>, length: number): MemberType<T[]> {
  return {
    size: type.size * length,
    align: type.align,
    get: (view, offset) => Array.from({ length }, (_, i) => type.get(view, offset + i * type.size)),
    set: (view, offset, value) => {
      for (let i = 0; i < length; i++) type.set(view, offset + i * type.size, value[i]!);
    },
  };
}

// biome-ignore lint/suspicious/noExplicitAny: a table may hold members of every type; inference gives the exact one back.
export type Members = Record<string, MemberType<any>>;
type ValueOf<M extends Members> = { -readonly [K in keyof M]: M[K] extends MemberType<infer T> ? T : never };
/** The value type of a structure: `type iommu_ioas_alloc = TypeOf<typeof iommu_ioas_alloc>`. */
export type TypeOf<S> = S extends Struct<infer M> ? ValueOf<M> : never;

/** A structure with its layout. It is a member type itself, so structures nest. */
export class Struct<M extends Members> implements MemberType<ValueOf<M>> {
  readonly name: string;
  readonly members: M;
  readonly size: number;
  readonly align: number;
  readonly offsets: { readonly [K in keyof M]: number };
  readonly #entries: [string, MemberType<unknown>, number][];

  constructor(name: string, members: M) {
    let offset = 0;
    let align = 1;
    const offsets: Record<string, number> = {};
    this.#entries = [];
    for (const [field, type] of Object.entries(members)) {
      offset = Math.ceil(offset / type.align) * type.align;
      offsets[field] = offset;
      this.#entries.push([field, type, offset]);
      offset += type.size;
      align = Math.max(align, type.align);
    }
    this.name = name;
    this.members = members;
    this.size = Math.ceil(offset / align) * align;
    this.align = align;
    this.offsets = offsets as { [K in keyof M]: number };
  }

  /** First byte after `member`: the smallest legal size when it is the last mandatory one. */
  endOf(member: keyof M & string): number {
    return this.offsets[member]! + this.members[member]!.size;
  }

  get(view: DataView, offset: number): ValueOf<M> {
    const value: Record<string, unknown> = {};
    for (const [field, type, at] of this.#entries) value[field] = type.get(view, offset + at);
    return value as ValueOf<M>;
  }

  set(view: DataView, offset: number, value: ValueOf<M>): void {
    for (const [field, type, at] of this.#entries) type.set(view, offset + at, value[field as keyof M]);
  }

  /** Reads the structure at the start of `from`; members beyond its end read as zero. */
  read(from: Uint8Array): ValueOf<M> {
    if (from.length >= this.size) return this.get(new DataView(from.buffer, from.byteOffset, from.length), 0);
    const padded = new Uint8Array(this.size);
    padded.set(from);
    return this.get(new DataView(padded.buffer), 0);
  }

  /** The first `length` bytes of the structure with this value. */
  write(value: ValueOf<M>, length = this.size): Uint8Array {
    const into = new Uint8Array(this.size);
    this.set(new DataView(into.buffer), 0, value);
    return length === this.size ? into : into.subarray(0, length);
  }
}

export function struct<M extends Members>(name: string, members: M): Struct<M> {
  return new Struct(name, members);
}
