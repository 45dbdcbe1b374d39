import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as uapi from '../../uapi/iommufd.ts';
import { refusal } from '../core/test-task.ts';
import type { FaultGroup, FaultQueue, FaultQueueFile } from './eventq.ts';
import type { HwptPaging } from './hw-pagetable.ts';
import { TestIommu, TestProgram } from './test-iommu.ts';

function queue(p: TestProgram): { queue: FaultQueue; file: FaultQueueFile; descriptor: number; id: number } {
  const answer = p.call(uapi.IOMMU_FAULT_QUEUE_ALLOC, uapi.iommu_fault_alloc, {});
  const file = p.task.file(answer.out_fault_fd) as FaultQueueFile;
  return { queue: file.queue, file, descriptor: answer.out_fault_fd, id: answer.out_fault_id };
}

function group(pages: number, attachment: object = {}): FaultGroup & { codes: number[] } {
  const codes: number[] = [];
  const faults = Array.from({ length: pages }, (_, i) => ({
    flags: i === pages - 1 ? uapi.IOMMU_PGFAULT_FLAGS_LAST_PAGE : 0,
    dev_id: 1,
    pasid: 0,
    grpid: 5,
    perm: uapi.IOMMU_PGFAULT_PERM_READ,
    __reserved: 0,
    addr: BigInt(i) * 4096n,
    length: 0,
  }));
  return { attachment, faults, codes, respond: (code) => codes.push(code) };
}

function read(p: TestProgram, file: FaultQueueFile, length: number): uapi.iommu_hwpt_pgfault[] {
  const bytes = new Uint8Array(length);
  const done = file.read(p.task, bytes, 0);
  return Array.from({ length: done / 40 }, (_, i) => uapi.iommu_hwpt_pgfault.read(bytes.subarray(i * 40)));
}

function answer(p: TestProgram, file: FaultQueueFile, ...answers: [number, number][]): number {
  const bytes = Buffer.concat(answers.map(([cookie, code]) => uapi.iommu_hwpt_page_response.write({ cookie, code })));
  return file.write(p.task, bytes, 0);
}

test('an empty queue reads 0 bytes and takes no answer; its object stays while the file is open', () => {
  const p = new TestProgram();
  const { file, descriptor, id } = queue(p);
  assert.equal(file.read(p.task, new Uint8Array(80), 0), 0);
  assert.equal(
    refusal(() => file.read(p.task, new Uint8Array(32), 0)),
    'ESPIPE',
  );
  assert.equal(
    refusal(() => file.write(p.task, new Uint8Array(9), 0)),
    'ESPIPE',
  );
  assert.equal(
    refusal(() => file.write(p.task, new Uint8Array(8), 0)),
    'EINVAL',
  );
  assert.equal(file.poll(), 4);
  assert.equal(
    refusal(() => p.destroy(id)),
    'EBUSY',
  );
  p.task.close(descriptor);
  p.destroy(id);
  p.end();
});

test('F-30: a group of page requests is read at once, with one cookie', () => {
  const p = new TestProgram();
  const { queue: faults, file } = queue(p);
  faults.deliver(group(3));
  faults.deliver(group(1));
  assert.equal(file.poll(), 5);
  assert.equal(
    refusal(() => read(p, file, 80)),
    'EINVAL',
    'no room for the first group',
  );
  const first = read(p, file, 120);
  assert.deepEqual(
    first.map(({ cookie }) => cookie),
    [1, 1, 1],
  );
  assert.deepEqual(
    first.map(({ flags }) => flags),
    [0, 0, 2],
  );
  assert.deepEqual(
    read(p, file, 400).map(({ cookie }) => cookie),
    [2],
  );
  assert.equal(file.poll(), 4);
  p.end();
});

test('F-31: answering twice is EINVAL; answers before the bad one count', () => {
  const p = new TestProgram();
  const { queue: faults, file } = queue(p);
  const [a, b] = [group(1), group(1)];
  faults.deliver(a);
  faults.deliver(b);
  read(p, file, 80);
  assert.equal(answer(p, file, [1, 0], [1, 0], [2, 0]), 8);
  assert.deepEqual(a.codes, [0]);
  assert.equal(
    refusal(() => answer(p, file, [1, 0])),
    'EINVAL',
  );
  assert.equal(
    refusal(() => answer(p, file, [2, 7])),
    'EINVAL',
  );
  assert.equal(answer(p, file, [2, 1]), 8);
  assert.deepEqual(b.codes, [1]);
  p.end();
});

test('F-32: detaching answers what is pending; late answers are EINVAL', () => {
  const p = new TestProgram();
  const { queue: faults, file, id } = queue(p);
  const device = p.bind(new TestIommu());
  const ioas = p.ioas();
  const hwpt = p.hwpt(device.id, ioas, { flags: uapi.IOMMU_HWPT_FAULT_ID_VALID, fault_id: id });
  assert.equal((p.file.context.get(hwpt) as HwptPaging).fault, faults);
  device.attach(hwpt);
  const attachment = device.igroup.attachments.get(0)!;
  const [unread, unanswered, foreign] = [group(1, attachment), group(1, attachment), group(1)];
  faults.deliver(unanswered);
  read(p, file, 40);
  faults.deliver(unread);
  faults.deliver(foreign);
  device.detach();
  assert.deepEqual([unread.codes, unanswered.codes, foreign.codes], [[1], [1], []]);
  assert.equal(
    refusal(() => answer(p, file, [1, 0])),
    'EINVAL',
  );
  p.destroy(hwpt);
  device.unbind();
  p.end();
  assert.deepEqual(foreign.codes, [1], 'the end of the queue answers the rest');
});
