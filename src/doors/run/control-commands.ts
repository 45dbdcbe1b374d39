/**
 * What can be asked of a running box. A new command adds one entry: what it takes, checked before it runs, and what it does. Its result
 * travels as JSON. Errno, HostFileError: refused, with the reason. Blocked: it has begun, and the result comes later.
 */
import { type Machine, type Schema, walkOf, type Zod } from '../../host/index.ts';
import { Errno } from '../../lib/errno.ts';
import { list, listGroups } from '../cli/host-commands.ts';

type Fn = ReturnType<Machine['functions']>[number];

export interface ControlCommand {
  readonly description: string;
  /** Of the member `arguments` of a request. */
  schema(z: Zod): Schema;
  /** `given` has passed the schema. */
  run(machine: Machine, given: never): unknown;
}

/** Couples a command's schema with what it does. */
function command<T>(description: string, schema: (z: Zod) => Schema<T>, run: (machine: Machine, given: T) => unknown) {
  return { description, schema, run } satisfies {
    description: string;
    schema: unknown;
    run: unknown;
  } as ControlCommand;
}

/** `0000:00:04.0` or `00:04.0`. */
function address(z: Zod) {
  return z
    .string()
    .regex(/^(?:[0-9a-f]{4}:)?[0-9a-f]{2}:[01][0-9a-f]\.[0-7]$/, 'expected an address such as 0000:00:04.0')
    .transform((at) => (at.length === 7 ? `0000:${at}` : at));
}

/** ENODEV: the machine has no such function. */
function find(machine: Machine, name: string): Fn {
  const fn = machine.pci.find(name);
  if (fn === undefined) throw new Errno('ENODEV', `the machine has no function ${name}`);
  return fn;
}

function describe(machine: Machine, fn: Fn) {
  return {
    address: fn.name,
    vendor: fn.vendor,
    device: fn.device,
    class: fn.class24,
    model: machine.hotplug.described.get(fn)?.model ?? null,
    driver: machine.drivers.driverOf(fn) ?? null,
    group: machine.iommu.groupOf(fn)?.id ?? null,
    physicalFunction: fn.physfn?.name ?? null,
  };
}

export const controlCommands: Readonly<Record<string, ControlCommand>> = {
  commands: command(
    'what can be asked',
    (z) => z.strictObject({}),
    () => Object.entries(controlCommands).map(([name, { description }]) => ({ name, description })),
  ),
  ls: command(
    'the functions of the machine: as data, and as lines for people',
    (z) => z.strictObject({}),
    (machine) => ({ functions: machine.functions().map((fn) => describe(machine, fn)), lines: list(machine) }),
  ),
  groups: command(
    'the IOMMU groups: as data, and as lines for people',
    (z) => z.strictObject({}),
    (machine) => ({
      groups: machine.iommu.groups().map((group) => ({
        id: group.id,
        members: [...group.members].map((fn) => ({ address: fn.name, reason: machine.iommu.reason(fn) })),
      })),
      lines: listGroups(machine),
    }),
  ),
  walk: command(
    'what the IOMMU does with an address of a function, entry by entry, and what its IOTLB would answer',
    (z) =>
      z.strictObject({
        function: address(z),
        iova: z.string().regex(/^0x[0-9a-f]{1,16}$/, 'expected an address such as 0x1000'),
        pasid: z.number().int().min(-1).optional(),
      }),
    (machine, { function: name, iova, pasid }) => walkOf(machine, name, pasid ?? -1, BigInt(iova)),
  ),
  held: command(
    'what programs hold at this moment',
    (z) => z.strictObject({}),
    (machine) => machine.invariants(),
  ),
  bind: command(
    'give a function to a driver; whatever driver has it lets go first',
    (z) => z.strictObject({ function: address(z), driver: z.string().min(1) }),
    (machine, { function: name, driver }) => machine.hotplug.giveTo(find(machine, name), driver),
  ),
  unbind: command(
    'take a function away from its driver; while programs hold it, that waits',
    (z) => z.strictObject({ function: address(z) }),
    (machine, { function: name }) => {
      const fn = find(machine, name);
      const driver = machine.drivers.bus.driverOf(fn);
      if (driver === undefined) throw new Errno('ENODEV', `${name} has no driver`);
      machine.drivers.unbind(driver, name, 0);
    },
  ),
  plug: command(
    'put a function into a slot, as an entry of a host file describes it',
    (z) => z.strictObject({ entry: z.record(z.string(), z.unknown()) }),
    (machine, { entry }) => {
      const fn = machine.hotplug.plug(machine.hotplug.functionEntry(entry));
      return describe(machine, fn);
    },
  ),
  unplug: command(
    'take a function and what is behind it out of its slot; while programs hold it, that waits, unless it is pulled out',
    (z) => z.strictObject({ function: address(z), pull: z.boolean().optional() }),
    (machine, { function: name, pull }) => machine.hotplug.takeOut(find(machine, name), pull === true ? 'pull' : 'ask'),
  ),
};
