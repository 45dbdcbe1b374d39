/**
 * Host files: what machine the box shows. JSON or YAML, checked against a published schema (schema/host.json, made from the
 * table below by `npm run schema`).
 *
 * A function stands at an address; a bridge says which bus lies behind it; a child stands on that bus. Nothing else nests.
 */
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, resolve } from 'node:path';
import type { z as zod } from 'zod';

export type Scalar = string | number | boolean;

export interface FunctionConfig {
  /** `[segment:]bus:slot.function` in hexadecimal, e.g. `00:04.0`. */
  at: string;
  model: string;
  options?: Record<string, unknown> | undefined;
  /** Driver bound at start; `vfio-pci` gives the function to programs. Absent or null: none. */
  driver?: string | null | undefined;
  /** Bus number behind a bridge. */
  secondary?: number | undefined;
  /** Pins the id of the group that this function founds. */
  group?: number | undefined;
  /** Bus addresses of BARs by index, instead of those the firmware would choose. */
  bars?: Record<string, number | string> | undefined;
  interruptLine?: number | undefined;
  untrusted?: boolean | undefined;
  /** Bus numbers that the bridge keeps for what may come behind it: the highest one. */
  subordinate?: number | undefined;
  /** The multifunction bit, where it does not follow from who stands in the slot. */
  multifunction?: boolean | undefined;
  /** Virtual functions (SR-IOV) that exist at start. */
  numVfs?: number | undefined;
  /** Whether the device is safe to hand out as it is; a mark for people. */
  wellBehaved?: 'yes' | 'vf' | 'unknown' | 'backdoor' | undefined;
  quirks?: QuirksConfig | undefined;
  /** Further devfns (`slot.function`) on the same bus that this function's DMA may carry. */
  dmaAliases?: string[] | undefined;
}

/** Marks of a function that does not behave as its registers say (`IsolationMarks` of hw/pci). */
export interface QuirksConfig {
  acsOverride?: boolean | undefined;
  bridgeTranslationRoot?: boolean | undefined;
  bridgeNoAlias?: boolean | undefined;
  pcieBridgeAlias?: boolean | undefined;
  /** Address of the function in whose name this one does DMA; it stands before this one in the list. */
  realDmaDevice?: string | undefined;
}

export interface UnitConfig {
  name: string;
  /** Capabilities: a name of `unitPresets` (hw/iommu/registers.ts). */
  preset: string;
  /** Whether the unit uses what it has cached: always until invalidated (the default), never, or now and then by a seed. */
  staleness?: 'always' | 'never' | { seed: number } | undefined;
  /** Addresses of the functions it serves; absent: all that no other unit serves. */
  functions?: string[] | undefined;
}

/** `2011`: the API of the first documentation. `today`: that of Linux 7.2. `both`: the one that takes a group first has it. */
export type ApiName = 2011 | 'today' | 'both';

/** Options of the API of 2011; docs/vfio-2011.md. */
export interface Vfio2011Config {
  revision?: 'seed' | 'late' | undefined;
  mergePolicy?: 'never' | 'sameCoherency' | 'always' | undefined;
  automaticMerge?: boolean | undefined;
  revokeOnNonViable?: boolean | undefined;
}

export interface KvmConfig {
  /** When a guest's WBINVD costs the host something: as Linux decides, or only under the three conditions. */
  policy?: 'kernel' | 'strict' | undefined;
  /** Host bridge: no-snoop requests really go past the caches. */
  platformHonoursNoSnoop?: boolean | undefined;
}

export interface HostConfig {
  $schema?: string | undefined;
  name: string;
  description?: string | undefined;
  iommu: { units: UnitConfig[] };
  /** Root buses beside bus 0 of each segment, as `0000:80`. */
  roots?: string[] | undefined;
  functions: FunctionConfig[];
  /** The order in which functions get their drivers (and vfio numbers); those not named follow in bus order. */
  bindOrder?: string[] | undefined;
  /** The VFIO API of the box; `today` unless given. */
  api?: ApiName | undefined;
  vfio2011?: Vfio2011Config | undefined;
  /** By the number of an IOMMU group: its API, when it is another one than the box's, and the minor number of its node in that of 2011. */
  groups?: Record<string, { api?: ApiName | undefined; minor?: number | undefined }> | undefined;
  iommufd?:
    | {
        selftest?: boolean | undefined;
        container?: 'vfio' | 'iommufd' | undefined;
        vtdViommu?: boolean | undefined;
      }
    | undefined;
  options?:
    | {
        allowUnsafeInterrupts?: boolean | undefined;
        dmaEntryLimit?: number | undefined;
        disableHugePages?: boolean | undefined;
        groupMultifunction?: boolean | undefined;
        /** The machine has its own /dev/kvm, as far as VFIO meets it. */
        kvm?: boolean | KvmConfig | undefined;
        enableSriov?: boolean | undefined;
      }
    | undefined;
}

/** A host file that cannot be used. The message is one line for a person: where, what was found, what was expected. */
export class HostFileError extends Error {}

const PRESETS = ['default', 'iommufd-selftest', 'kernel-golden', 'sriov', 'seed-2011', 'sva'];

/** Names that `--host` takes beside files. */
export function presetNames(): string[] {
  return [...PRESETS];
}

/** Where the presets lie: hosts/ of the package. */
function presetPath(name: string): URL {
  return new URL(`../../../hosts/${name}.json`, import.meta.url);
}

const FUNCTION_ADDRESS = /^(?:[0-9a-f]{4,8}:)?[0-9a-f]{2}:[01][0-9a-f]\.[0-7]$/;

/** An address in a host file. */
function addressSchema(z: typeof zod) {
  return z
    .string()
    .regex(FUNCTION_ADDRESS, 'expected an address such as "00:04.0" or "0000:00:04.0" (hexadecimal, lower case)');
}

/** One entry of `functions`. */
function functionSchema(z: typeof zod) {
  const address = addressSchema(z);
  const busAddress = z.union([
    z.int().min(0),
    z.string().regex(/^0x[0-9a-f]+$/i, 'expected a number or a string such as "0xfea00000"'),
  ]);
  return z
    .strictObject({
      at: address.describe('Address of the function: [segment:]bus:slot.function'),
      model: z
        .string()
        .min(1)
        .describe('Device model, e.g. edu, testdev, root-port, or the path of a model file, seen from this file'),
      options: z.record(z.string(), z.unknown()).optional().describe('Options of the model'),
      driver: z
        .string()
        .nullable()
        .optional()
        .describe('Driver bound at start; vfio-pci gives the function to programs'),
      secondary: z.int().min(1).max(255).optional().describe('Bus number behind this bridge'),
      subordinate: z.int().min(1).max(255).optional().describe('Highest bus number that this bridge keeps'),
      multifunction: z.boolean().optional().describe('The multifunction bit, where it does not follow from the slot'),
      numVfs: z.int().min(1).max(65535).optional().describe('Virtual functions that exist at start'),
      wellBehaved: z.enum(['yes', 'vf', 'unknown', 'backdoor']).optional().describe('Whether it is safe to hand out'),
      quirks: z
        .strictObject({
          acsOverride: z.boolean().optional().describe('Verdict of the ACS test, whatever the registers say'),
          bridgeTranslationRoot: z.boolean().optional().describe('Aliases above this bridge do not matter'),
          bridgeNoAlias: z.boolean().optional().describe('PCIe-to-PCI bridge that passes requester IDs through'),
          pcieBridgeAlias: z.boolean().optional().describe('Conventional bridge that behaves as a PCIe-to-PCI bridge'),
          realDmaDevice: address.optional().describe('The function in whose name this one does DMA'),
        })
        .optional()
        .describe('Marks of a function that does not behave as its registers say'),
      group: z.int().min(0).optional().describe('Pins the id of the IOMMU group that this function founds'),
      bars: z
        .record(z.string().regex(/^[0-5]$/, 'expected a BAR index 0 to 5'), busAddress)
        .optional()
        .describe('Bus addresses of BARs by index'),
      interruptLine: z.int().min(0).max(255).optional(),
      untrusted: z.boolean().optional(),
      dmaAliases: z
        .array(z.string().regex(/^[01][0-9a-f]\.[0-7]$/, 'expected slot.function such as "00.1"'))
        .optional(),
    })
    .describe('One PCI function');
}

/** The schema, as a zod type. Loaded only for files of users: presets are checked by the tests. */
export function hostSchema(z: typeof zod) {
  const address = addressSchema(z);
  const fn = functionSchema(z);
  const api = z
    .union([z.literal(2011), z.enum(['today', 'both'])])
    .describe('VFIO API: 2011, today, or both (the one that takes a group first has it)');
  return z.strictObject({
    $schema: z.string().optional(),
    name: z.string().min(1),
    description: z.string().optional(),
    iommu: z.strictObject({
      units: z.array(
        z.strictObject({
          name: z.string().min(1),
          preset: z.string().min(1),
          staleness: z
            .union([z.enum(['always', 'never']), z.strictObject({ seed: z.number().int() })])
            .optional()
            .describe(
              'Whether what the unit has cached is used: always until invalidated, never, now and then by a seed',
            ),
          functions: z.array(address).optional(),
        }),
      ),
    }),
    roots: z
      .array(z.string().regex(/^[0-9a-f]{4,8}:[0-9a-f]{2}$/, 'expected a bus such as "0000:80"'))
      .optional()
      .describe('Root buses beside bus 0 of each segment'),
    functions: z.array(fn),
    bindOrder: z.array(address).optional(),
    api: api.optional(),
    vfio2011: z
      .strictObject({
        revision: z
          .enum(['seed', 'late'])
          .optional()
          .describe('Structures and numbers of December 2011, or later ones'),
        mergePolicy: z.enum(['never', 'sameCoherency', 'always']).optional(),
        automaticMerge: z.boolean().optional().describe('Merge a group when its first device is opened'),
        revokeOnNonViable: z.boolean().optional().describe('Block DMA while a member of a used group is not bound'),
      })
      .optional()
      .describe('Options of the API of 2011'),
    groups: z
      .record(
        z.string().regex(/^\d+$/, 'expected the number of an IOMMU group'),
        z.strictObject({ api: api.optional(), minor: z.int().min(0).max(0xfffff).optional() }),
      )
      .optional(),
    iommufd: z
      .strictObject({
        selftest: z
          .boolean()
          .optional()
          .describe("The mock driver of the kernel's own test suite: IOMMU_TEST_CMD on /dev/iommu"),
        container: z
          .enum(['vfio', 'iommufd'])
          .optional()
          .describe('Who answers on /dev/vfio/vfio: the container of VFIO itself, or an iommufd in its place'),
        vtdViommu: z
          .boolean()
          .optional()
          .describe('Virtual IOMMUs of type 0x56544401 on VT-d units that nest; Linux has none there'),
      })
      .optional(),
    options: z
      .strictObject({
        allowUnsafeInterrupts: z.boolean().optional(),
        dmaEntryLimit: z.int().min(1).max(0xffffffff).optional(),
        disableHugePages: z.boolean().optional(),
        groupMultifunction: z.boolean().optional(),
        kvm: z
          .union([
            z.boolean(),
            z.strictObject({
              policy: z.enum(['kernel', 'strict']).optional(),
              platformHonoursNoSnoop: z.boolean().optional(),
            }),
          ])
          .optional()
          .describe('The machine has its own /dev/kvm, as far as VFIO meets it'),
        enableSriov: z.boolean().optional().describe('vfio-pci makes virtual functions (its parameter enable_sriov)'),
      })
      .optional(),
  });
}

const load = createRequire(import.meta.url);

/**
 * Reads a preset by name or a host file by path. HostFileError: the file is missing, is no JSON/YAML, or is wrong somewhere; what
 * models and options exist is checked later, when the machine is built.
 */
export function loadHost(nameOrPath: string): HostConfig {
  if (PRESETS.includes(nameOrPath)) return JSON.parse(readFileSync(presetPath(nameOrPath), 'utf8')) as HostConfig;
  let text: string;
  try {
    text = readFileSync(nameOrPath, 'utf8');
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    if (code === 'ENOENT' && !/[./]/.test(nameOrPath)) {
      throw new HostFileError(`there is no host file or preset '${nameOrPath}'; presets: ${PRESETS.join(', ')}`);
    }
    throw new HostFileError(`cannot read host file '${nameOrPath}': ${code}`);
  }
  const host = parseHost(text, nameOrPath);
  for (const fn of host.functions) if (isModelFile(fn.model)) fn.model = resolve(dirname(nameOrPath), fn.model);
  return host;
}

/** Whether a model's name is that of a file, not of the catalog. */
export function isModelFile(name: string): boolean {
  return /\.(?:js|mjs|cjs|ts|mts)$/.test(name);
}

/** As `loadHost`, from a text; paths of model files stay as they are. `origin` is its name in messages; a name that ends in .yaml or .yml makes it YAML. */
export function parseHost(text: string, origin: string): HostConfig {
  const value = parseText(text, origin);
  const { z } = load('zod') as typeof import('zod');
  return checked(hostSchema(z).safeParse(value), origin) as HostConfig;
}

/** The data of a JSON or YAML text, by the name of its file. HostFileError: it is neither. */
export function parseText(text: string, origin: string): unknown {
  try {
    const isYaml = /\.ya?ml$/.test(origin);
    return isYaml ? (load('yaml') as typeof import('yaml')).parse(text) : JSON.parse(text);
  } catch (error) {
    throw new HostFileError(`${origin}: ${(error as Error).message.split('\n')[0]!.replace(/:$/, '')}`);
  }
}

/** One entry of `functions`, from data. HostFileError. */
export function parseFunction(data: unknown, origin: string): FunctionConfig {
  const { z } = load('zod') as typeof import('zod');
  return checked(functionSchema(z).safeParse(data), origin) as FunctionConfig;
}

type Issue = Pick<zod.core.$ZodIssue, 'path' | 'message'>;

/** Of a value that fits none of several forms: what is wrong with the form that fits best, or what each expects. */
function ofUnion(issue: zod.core.$ZodIssue): Issue {
  if (issue.code !== 'invalid_union' || issue.errors.length === 0) return issue;
  const firsts = issue.errors.map((issues) => ofUnion(issues[0]!));
  const best = firsts.reduce((a, b) => (b.path.length > a.path.length ? b : a));
  const reasons = firsts.map(({ message }) => message.replace(/^Invalid (?:input|option): /, ''));
  return { path: [...issue.path, ...best.path], message: best.path.length > 0 ? best.message : reasons.join('; or ') };
}

/** What passed its schema; else where it is wrong. */
function checked(result: zod.ZodSafeParseResult<unknown>, origin: string): unknown {
  if (result.success) return result.data;
  const issue = ofUnion(result.error.issues[0]!);
  const path = issue.path.reduce<string>(
    (at, key) => (typeof key === 'number' ? `${at}[${key}]` : at === '' ? String(key) : `${at}.${String(key)}`),
    '',
  );
  const more = result.error.issues.length > 1 ? ` (and ${result.error.issues.length - 1} more)` : '';
  throw new HostFileError(`${origin}: at ${path === '' ? 'the top' : path}: ${issue.message}${more}`);
}

/** `0000:00:04.0` of `00:04.0`. */
export function fullAddress(at: string): string {
  return at.length === 7 ? `0000:${at}` : at;
}
