import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import * as kvm from './kvm.ts';

test('the example of docs/kvm.md does what it says', () => {
  const { BufferBacking, HostInterrupts, KvmHost, PhysicalMemory, Vm } = kvm;
  const memory = new PhysicalMemory();
  memory.addWindow(0x100, 16, new BufferBacking(16 * 4096));
  const host = new KvmHost({ memory, interrupts: new HostInterrupts(), policy: 'strict' });
  const vm = new Vm(host);
  vm.addMemory(0, 16, 0x100);
  const vcpu = vm.addVcpu();
  vcpu.load(2);
  vcpu.execute([{ op: 'write', page: 1, offset: 0, bytes: Uint8Array.of(7) }, { op: 'wbinvd' }]);
  assert.deepEqual([vcpu.exitCount, host.hostFlushes], [1, 0]);
  const text = readFileSync(new URL('../../docs/kvm.md', import.meta.url), 'utf8');
  for (const name of /import \{ (.*) \} from 'vfiobox\/kvm'/.exec(text)![1]!.split(', ')) assert.ok(name in kvm, name);
});
