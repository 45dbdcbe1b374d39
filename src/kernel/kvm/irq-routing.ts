/**
 * What a virtual machine's interrupt numbers (GSI) mean: pins of its interrupt controllers, or messages to its processors.
 */
import { Errno } from '../../lib/errno.ts';
import {
  KVM_IOAPIC_NUM_PINS,
  KVM_IRQ_ROUTING_IRQCHIP,
  KVM_IRQ_ROUTING_MSI,
  KVM_IRQCHIP_IOAPIC,
  KVM_IRQCHIP_PIC_SLAVE,
  KVM_MSI_VALID_DEVID,
  type kvm_irq_routing_entry,
} from '../../uapi/kvm.ts';

/** GSIs and entries that a machine can have. */
export const KVM_MAX_IRQ_ROUTES = 4096;
const PIC_PINS = 8;

/** A message in the guest's words: where it goes and how. */
export interface GuestMessage {
  readonly vector: number;
  /** APIC ID, 0xff for all, or a set of them in logical mode. */
  readonly destination: number;
  readonly isLogical: boolean;
  /** 0 fixed, 1 lowest priority, 2 SMI, 4 NMI, 5 INIT, 7 ExtINT. */
  readonly deliveryMode: number;
}

export type Route =
  | { readonly kind: 'pin'; readonly chip: number; readonly pin: number }
  | { readonly kind: 'message'; readonly message: GuestMessage };

/** Compatibility format, as a guest writes it into its devices. */
export function guestMessage(addressLow: number, data: number): GuestMessage {
  return {
    vector: data & 0xff,
    destination: (addressLow >>> 12) & 0xff,
    isLogical: (addressLow & 4) !== 0,
    deliveryMode: (data >>> 8) & 7,
  };
}

export class IrqRouting {
  #routes = new Map<number, Route[]>();

  /** Pins 0 to 23 of the IOAPIC and 0 to 15 of the PICs: what a machine with its own controllers starts with. */
  setDefault(): void {
    this.#routes = new Map();
    for (let gsi = 0; gsi < KVM_IOAPIC_NUM_PINS; gsi++) {
      const pins: Route[] = [{ kind: 'pin', chip: KVM_IRQCHIP_IOAPIC, pin: gsi }];
      if (gsi < 2 * PIC_PINS) pins.push({ kind: 'pin', chip: gsi < PIC_PINS ? 0 : 1, pin: gsi % PIC_PINS });
      this.#routes.set(gsi, pins);
    }
  }

  /** Replaces all routes. EINVAL: a GSI or pin that is none, a flag, a type, or a GSI twice for the same controller. */
  set(entries: readonly kvm_irq_routing_entry[]): void {
    const next = new Map<number, Route[]>();
    for (const entry of entries) {
      if (entry.gsi >= KVM_MAX_IRQ_ROUTES)
        throw new Errno('EINVAL', `GSI ${entry.gsi} is beyond ${KVM_MAX_IRQ_ROUTES}`);
    }
    for (const entry of entries) {
      const known = entry.type === KVM_IRQ_ROUTING_MSI ? KVM_MSI_VALID_DEVID : 0;
      if ((entry.flags & ~known) !== 0) throw new Errno('EINVAL', `route of GSI ${entry.gsi} has unknown flags`);
      const routes = next.get(entry.gsi) ?? [];
      const route = routeOf(entry);
      const collides = routes.some(
        (other) => other.kind !== 'pin' || route.kind !== 'pin' || other.chip === route.chip,
      );
      if (collides) throw new Errno('EINVAL', `GSI ${entry.gsi} has two routes that exclude each other`);
      next.set(entry.gsi, [...routes, route]);
    }
    this.#routes = next;
  }

  of(gsi: number): readonly Route[] {
    return this.#routes.get(gsi) ?? [];
  }

  /** The only route of a GSI when it is a message: what an irqfd can be posted by. */
  messageOf(gsi: number): GuestMessage | undefined {
    const routes = this.of(gsi);
    return routes.length === 1 && routes[0]!.kind === 'message' ? routes[0]!.message : undefined;
  }
}

function routeOf({ gsi, type, u }: kvm_irq_routing_entry): Route {
  if (type === KVM_IRQ_ROUTING_MSI) return { kind: 'message', message: guestMessage(u[0]!, u[2]!) };
  if (type !== KVM_IRQ_ROUTING_IRQCHIP) throw new Errno('EINVAL', `route of GSI ${gsi} has type ${type}`);
  const [chip, pin] = [u[0]!, u[1]!];
  const pins = chip === KVM_IRQCHIP_IOAPIC ? KVM_IOAPIC_NUM_PINS : chip <= KVM_IRQCHIP_PIC_SLAVE ? PIC_PINS : 0;
  if (pin >= pins) throw new Errno('EINVAL', `interrupt controller ${chip} has no pin ${pin}`);
  return { kind: 'pin', chip, pin };
}
