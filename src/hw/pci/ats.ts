/**
 * What a function and the IOMMU above it say to each other beside plain reads and writes: attributes of a request, address translation
 * services (ATS; PCI Express Base 5.0, 10.1 to 10.3) and the page request interface (PRI; 10.4). Values only; who speaks is
 * `DmaPort` on one side and an `Upstream` on the other.
 *
 * Pages are those of 64-bit addresses, so up to 2^52 - 1.
 */

/** What a memory request carries beside its address. */
export interface DmaAttributes {
  /** Process address space id; -1 or absent: none. */
  readonly pasid?: number;
  /** The data read are to be executed. */
  readonly exec?: boolean;
  /** Privileged mode; only together with a PASID. */
  readonly privileged?: boolean;
  /** The caches need not be snooped, says the device. */
  readonly noSnoop?: boolean;
  /** The address is physical already: it came out of a translation request. */
  readonly translated?: boolean;
}

/** What a device asks in a translation request. `write` absent: the device only wants to read ("no write" flag). */
export interface TranslationRequest {
  readonly pasid?: number;
  readonly write?: boolean;
  readonly exec?: boolean;
  readonly privileged?: boolean;
}

/** The answer to a translation request: what a device may keep until it is told to forget it. */
export interface Translation {
  /** First page that it translates; `pages` is a power of two, both aligned to it. */
  readonly firstPage: number;
  readonly pages: number;
  /** Where `firstPage` is. */
  readonly physicalPage: number;
  /** Neither: nothing is there for this device, it may ask for the page. */
  readonly read: boolean;
  readonly write: boolean;
  readonly exec: boolean;
  readonly privileged: boolean;
  /** N: the device shall not set no-snoop in requests to these pages. */
  readonly mustSnoop: boolean;
  /** U: these pages can be reached by untranslated requests only. */
  readonly isUntranslatedOnly: boolean;
}

/** A page request message. A group (9 bits) is complete with the request that says `last`. */
export interface PageRequest {
  /** -1: none. */
  readonly pasid: number;
  readonly page: number;
  readonly read: boolean;
  readonly write: boolean;
  readonly exec: boolean;
  readonly privileged: boolean;
  readonly last: boolean;
  readonly group: number;
}

/** The response codes of PCI Express Base 5.0, 10.4.2.1: success 0, invalid 1, failure 15. */
export type PageResponseCode = 'success' | 'invalid' | 'failure';

export interface PageResponse {
  /** -1: none. */
  readonly pasid: number;
  readonly group: number;
  readonly code: PageResponseCode;
}

/** An invalidation of a device's translations: `2^order` pages from `firstPage`, of one PASID or (-1) of requests without. */
export interface AtcInvalidation {
  readonly pasid: number;
  /** Translations of every PASID. */
  readonly isAllPasids: boolean;
  readonly firstPage: number;
  readonly order: number;
}

/** The order of an invalidation that names all pages. */
export const ALL_PAGES_ORDER = 52;

/** The function as the IOMMU sees it. */
export interface AtsEndpoint {
  /** The function forgets translations. False: no completion comes (time-out). */
  invalidate(invalidation: AtcInvalidation): boolean;
  respond(response: PageResponse): void;
}
