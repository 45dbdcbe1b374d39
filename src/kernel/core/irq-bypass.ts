/**
 * The interrupt bypass manager: brings together who makes an interrupt (a device's driver, which would signal an eventfd) and who
 * takes it (a virtual machine, which would wait on that eventfd), so that they can arrange a shorter way. The eventfd itself is the
 * token by which they find each other; it goes on working with or without them.
 */
import { Errno } from '../../lib/errno.ts';

/** An interrupt of the host that a virtual processor can be given. */
export interface HostIrq {
  /** Number for people and traces. */
  readonly number: number;
  /**
   * From now on the interrupt is noted in a virtual processor's descriptor (address, vector); undefined: it is the host's again.
   * ENODEV: the hardware cannot.
   */
  setVcpuAffinity(target: { readonly descriptor: bigint; readonly vector: number } | undefined): void;
}

export interface BypassProducer {
  readonly irq: HostIrq | undefined;
  addConsumer?(consumer: BypassConsumer): void;
  delConsumer?(consumer: BypassConsumer): void;
  stop?(): void;
  start?(): void;
}

export interface BypassConsumer {
  addProducer(producer: BypassProducer): void;
  delProducer(producer: BypassProducer): void;
  stop?(): void;
  start?(): void;
}

export class IrqBypass {
  readonly #producers = new Map<unknown, BypassProducer>();
  readonly #consumers = new Map<unknown, BypassConsumer>();
  readonly #tokens = new Map<BypassProducer | BypassConsumer, unknown>();
  readonly #pairs = new Map<BypassProducer, BypassConsumer>();

  /** Producers and consumers that are registered. */
  get registered(): number {
    return this.#tokens.size;
  }

  get connected(): number {
    return this.#pairs.size;
  }

  /** EBUSY: the eventfd has a producer. EINVAL: it is registered already. Any error of the connection; nothing is registered then. */
  registerProducer(producer: BypassProducer, token: unknown): void {
    this.#register(this.#producers, producer, token, 'producer');
    const consumer = this.#consumers.get(token);
    if (consumer !== undefined) this.#connectOr(producer, consumer, () => this.#forget(this.#producers, producer));
  }

  /** As `registerProducer`. EINVAL also: a callback that must be there is missing. */
  registerConsumer(consumer: BypassConsumer, token: unknown): void {
    if (typeof consumer.addProducer !== 'function' || typeof consumer.delProducer !== 'function') {
      throw new Errno('EINVAL', 'a consumer of interrupts needs addProducer and delProducer');
    }
    this.#register(this.#consumers, consumer, token, 'consumer');
    const producer = this.#producers.get(token);
    if (producer !== undefined) this.#connectOr(producer, consumer, () => this.#forget(this.#consumers, consumer));
  }

  /** Nothing happens when it is not registered. */
  unregisterProducer(producer: BypassProducer): void {
    const consumer = this.#pairs.get(producer);
    if (consumer !== undefined) this.#disconnect(producer, consumer);
    this.#forget(this.#producers, producer);
  }

  unregisterConsumer(consumer: BypassConsumer): void {
    for (const [producer, other] of this.#pairs) if (other === consumer) this.#disconnect(producer, consumer);
    this.#forget(this.#consumers, consumer);
  }

  #register<T extends BypassProducer | BypassConsumer>(
    side: Map<unknown, T>,
    one: T,
    token: unknown,
    name: string,
  ): void {
    if (this.#tokens.has(one)) throw new Errno('EINVAL', `this ${name} is registered already`);
    if (side.has(token)) throw new Errno('EBUSY', `the eventfd has a ${name} already`);
    side.set(token, one);
    this.#tokens.set(one, token);
  }

  #forget<T extends BypassProducer | BypassConsumer>(side: Map<unknown, T>, one: T): void {
    if (!this.#tokens.has(one)) return;
    side.delete(this.#tokens.get(one));
    this.#tokens.delete(one);
  }

  #connectOr(producer: BypassProducer, consumer: BypassConsumer, forget: () => void): void {
    try {
      this.#connect(producer, consumer);
    } catch (error) {
      forget();
      throw error;
    }
  }

  #connect(producer: BypassProducer, consumer: BypassConsumer): void {
    producer.stop?.();
    consumer.stop?.();
    try {
      producer.addConsumer?.(consumer);
      try {
        consumer.addProducer(producer);
      } catch (error) {
        producer.delConsumer?.(consumer);
        throw error;
      }
      this.#pairs.set(producer, consumer);
    } finally {
      consumer.start?.();
      producer.start?.();
    }
  }

  #disconnect(producer: BypassProducer, consumer: BypassConsumer): void {
    this.#pairs.delete(producer);
    producer.stop?.();
    consumer.stop?.();
    consumer.delProducer(producer);
    producer.delConsumer?.(consumer);
    consumer.start?.();
    producer.start?.();
  }
}
