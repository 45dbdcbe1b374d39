/** Drivers bound, unbound and functions removed by real programs; who writes sees the kernel's error, and waits when it has to. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { test } from 'node:test';
import { needs, provided, runInBox, scratch, tree } from '../support/box.ts';
import { EDU, HOST } from './machine.ts';

needs('python', 'driverctl', 'dpdk', 'pciutils');

const hold = join(tree, 'tests/e2e/hold.py');

const lines = `
unbind 0
unbind-again 1
driver none
tee-bind 0
tee-bind-again 1
driver vfio-pci
no-override 0
bind-no-match 1
new_id 0
driver vfio-pci
new_id-again 1
new_id-short 1
remove_id 0
remove_id-again 1
override 0
probe 0
probe-none 1
remove 0
removed 0
rescan-bad 1
rescan 0
found 0
device-rescan 0
`.trim();

for (const shell of ['sh', 'bash']) {
  for (const mode of ['auto', 'rewrite']) {
    test(`${shell}: bind, unbind, ids, override, remove and rescan (--sysfs ${mode})`, {
      timeout: 60_000,
    }, async (t) => {
      if (spawnSync(shell, ['-c', ':']).status !== 0) return t.skip(`no ${shell} here`);
      const outcome = await runInBox([shell, join(tree, 'tests/e2e/binding.sh')], {
        host: HOST,
        options: ['--sysfs', mode, '--check-left'],
        timeout: 30_000,
      });
      assert.equal(outcome.stdout.trim(), lines, outcome.story);
      assert.equal(outcome.status, 0, outcome.story);
      assert.doesNotMatch(outcome.stderr, /was not told/, outcome.story);
      if (shell === 'bash') {
        // Its echo writes through stdio, and names the error.
        const errors = [...outcome.stderr.matchAll(/(?:write error|bind): (.*)$/gm)].map(([, what]) => what);
        assert.deepEqual(
          errors,
          [
            'No such device',
            'Device or resource busy',
            'No such device',
            'File exists',
            'Invalid argument',
            'No such device',
            'No such device',
            'Invalid argument',
          ],
          outcome.story,
        );
      }
    });
  }
}

test('python: each write says what the kernel says', { timeout: 60_000 }, async (t) => {
  if (provided(t, 'python') === undefined) return;
  const script = `
import os
P, D = '/sys/bus/pci', '${EDU}'
def write(path, text):
    try:
        with open(P + path, 'w') as f: f.write(text)
        print('ok')
    except OSError as e: print(os.strerror(e.errno))
for path, text in (('/drivers/vfio-pci/unbind', D), ('/drivers/vfio-pci/unbind', D), ('/drivers/nobody/unbind', D),
                   ('/drivers_probe', '0000:99:00.0'), ('/drivers_probe', D), ('/drivers/vfio-pci/bind', D),
                   ('/devices/' + D + '/sriov_numvfs', '1'), ('/devices/' + D + '/remove', 'x')): write(path, text)
fd = os.open(P + '/drivers/vfio-pci/unbind', os.O_WRONLY)
print(os.pwrite(fd, D.encode(), 0), os.write(os.open(P + '/drivers/vfio-pci/bind', os.O_WRONLY), D.encode() + b'\\n'))`;
  const outcome = await runInBox(['python3', '-c', script], { host: HOST });
  assert.deepEqual(
    outcome.stdout.trim().split('\n'),
    [
      'ok',
      'No such device',
      'No such file or directory',
      'No such device',
      'ok',
      'Device or resource busy',
      'Permission denied',
      'Invalid argument',
      `${EDU.length} ${EDU.length + 1}`,
    ],
    outcome.story,
  );
});

const writers = {
  'echo of sh': `sh -c 'echo ${EDU} >/sys/bus/pci/drivers/vfio-pci/unbind'`,
  'echo of bash': `bash -c 'echo ${EDU} >/sys/bus/pci/drivers/vfio-pci/unbind'`,
  tee: `sh -c 'echo ${EDU} | tee /sys/bus/pci/drivers/vfio-pci/unbind >/dev/null'`,
  python: `python3 -c 'open("/sys/bus/pci/drivers/vfio-pci/unbind","w").write("${EDU}")'`,
  'remove, by sh': `sh -c 'echo 1 >/sys/bus/pci/devices/${EDU}/remove'`,
};

for (const [name, writer] of Object.entries(writers)) {
  test(`a device in use: ${name} waits until its user closes it, others go on`, { timeout: 60_000 }, async (t) => {
    if (provided(t, 'python') === undefined) return;
    const folder = scratch(t);
    const script = `
      mkfifo ${folder}/held ${folder}/go
      python3 ${hold} ${EDU} <${folder}/go >${folder}/held & exec 7>${folder}/go
      read word <${folder}/held
      ${writer} & W=$!
      for i in $(seq 100); do [ -e /sys/bus/pci/devices/${EDU}/driver ] || break; sleep 0.1; done
      kill -0 $W && echo waiting
      [ ! -e /sys/bus/pci/devices/${EDU}/driver ] && echo link gone
      cat /sys/bus/pci/devices/${EDU}/vendor
      python3 ${hold} 0000:04:01.0 0 
      kill -0 $W && echo still waiting
      echo >&7
      wait $W; echo ended $?
      wait`;
    const outcome = await runInBox(['bash', '-c', script], { host: HOST, options: ['--check-left'], timeout: 30_000 });
    assert.deepEqual(
      outcome.stdout.trim().split('\n'),
      ['waiting', 'link gone', '0x1234', 'held', 'still waiting', 'ended 0'],
      outcome.story,
    );
    assert.equal(outcome.status, 0, outcome.story);
  });
}

test('a writer that is killed while it waits leaves nothing: the unbind ends with the last close all the same', {
  timeout: 60_000,
}, async (t) => {
  if (provided(t, 'python') === undefined) return;
  const folder = scratch(t);
  const script = `
    mkfifo ${folder}/held ${folder}/go
    python3 ${hold} ${EDU} <${folder}/go >${folder}/held & exec 7>${folder}/go
    read word <${folder}/held
    for signal in KILL INT; do
      python3 -c 'open("/sys/bus/pci/drivers/vfio-pci/unbind","w").write("${EDU}")' 2>/dev/null & W=$!
      for i in $(seq 100); do [ -e /sys/bus/pci/devices/${EDU}/driver ] || break; sleep 0.1; done
      [ $signal = KILL ] || sleep 1.5
      kill -$signal $W
      [ $signal = KILL ] && { wait $W; echo killed $?; } || SECOND=$W
    done
    # A signal with a handler does not end the wait, as on Linux.
    sleep 0.2; kill -0 $SECOND && echo goes on
    echo >&7
    wait $SECOND; echo $?
    for i in 1 2 3 4 5 6 7 8 9; do [ -e /sys/bus/pci/drivers/vfio-pci/${EDU} ] || break; sleep 0.1; done
    cat /sys/bus/pci/devices/${EDU}/uevent | grep -c DRIVER
    echo ${EDU} >/sys/bus/pci/drivers/vfio-pci/bind && echo bound
    wait`;
  const outcome = await runInBox(['bash', '-c', `set +m; ${script}`], {
    host: HOST,
    options: ['--check-left'],
    timeout: 30_000,
  });
  const found = outcome.stdout.trim().split('\n');
  assert.deepEqual(found.slice(0, 2), ['killed 137', 'goes on'], outcome.story);
  assert.deepEqual(found.slice(3), ['0', 'bound'], outcome.story);
  assert.equal(outcome.status, 0, outcome.story);
});

test('driverctl of Debian: list-devices, set-override, unset-override; modprobe of the box’s modules is no affair of the system', {
  timeout: 60_000,
}, async (t) => {
  const folder = provided(t, 'driverctl');
  if (folder === undefined) return;
  const serial = '0000:02:02.0';
  const script = `
    driverctl --nosave set-override ${serial} vfio-pci; echo $?
    driverctl list-overrides | grep ${serial}
    driverctl --nosave unset-override ${serial}; echo $?
    driverctl list-devices | grep ${serial}
    driverctl --nosave set-override 0000:00:08.0 vfio-pci; echo $?
    /sbin/modprobe vfio-pci; echo $?
    /sbin/modprobe -r vfio_pci; echo $?`;
  const outcome = await runInBox(['bash', '-c', script], {
    host: HOST,
    env: { PATH: `${join(folder, 'bin')}:${process.env['PATH']}` },
  });
  assert.deepEqual(
    outcome.stdout.trim().split('\n'),
    ['0', `${serial} vfio-pci`, '0', `${serial} serial`, '1', '0', '1'],
    outcome.story,
  );
  assert.match(outcome.stderr, /failed to bind device 0000:00:08.0/, outcome.story);
});

test('dpdk-devbind of Debian: unbind, bind, status', { timeout: 60_000 }, async (t) => {
  const dpdk = provided(t, 'dpdk');
  const pciutils = provided(t, 'pciutils');
  if (dpdk === undefined || pciutils === undefined || provided(t, 'python') === undefined) return;
  const tool = `python3 ${join(dpdk, 'tree/usr/bin/dpdk-devbind.py')}`;
  const nic = '0000:05:00.0';
  const driver = `(readlink /sys/bus/pci/devices/${nic}/driver || echo none)`;
  const script = `
    ${tool} -u ${nic}; echo $?; ${driver}
    ${tool} -b vfio-pci ${nic}; echo $?; ${driver} | grep -o vfio-pci
    ${tool} --status-dev net | grep ${nic}`;
  const outcome = await runInBox(['bash', '-c', script], {
    host: HOST,
    env: { PATH: `${join(pciutils, 'bin')}:${process.env['PATH']}` },
    timeout: 40_000,
  });
  const found = outcome.stdout
    .trim()
    .split('\n')
    .filter((line) => !/libkmod/.test(line));
  assert.deepEqual(found.slice(0, 4), ['0', 'none', '0', 'vfio-pci'], outcome.story);
  assert.match(found[4] ?? '', /drv=vfio-pci/, outcome.story);
});
