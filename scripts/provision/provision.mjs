#!/usr/bin/env node
// Provides the outside programs that end-to-end tests and conformance runs need, in a cache folder outside the tree.

import { spawnSync } from 'node:child_process';
import { accessSync, constants } from 'node:fs';
import { delimiter, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const here = dirname(fileURLToPath(import.meta.url));

/** What a component's script finds on the machine: program and the Debian package that has it. */
const tools = {
  cc: 'gcc libc6-dev',
  make: 'make',
  xz: 'xz-utils',
  tar: 'tar',
  flock: 'util-linux',
  setpriv: 'util-linux',
  python3: 'python3',
};

/** A component with a script is a folder of the cache; one without is programs of the machine. */
const components = {
  guest: { what: 'QEMU 11.1 and a Linux 7.2 kernel with modules to boot in it', script: 'guest.sh', tools: ['flock'] },
  uapi: { what: 'the Linux 7.2 headers for programs', script: 'uapi.sh', tools: ['flock'] },
  pciutils: { what: 'lspci and setpci', script: 'pciutils.sh', tools: ['flock'] },
  driverctl: { what: 'driverctl', script: 'driverctl.sh', tools: ['flock'] },
  dpdk: { what: 'DPDK headers, libraries and drivers', script: 'dpdk.sh', tools: ['flock', 'xz', 'tar'] },
  selftests: {
    what: 'the VFIO and iommufd selftests of Linux 7.2',
    script: 'selftests.sh',
    tools: ['flock', 'cc', 'make', 'xz', 'tar'],
  },
  tshark: {
    what: 'tshark, to read captures with the dissectors of tools/',
    script: 'tshark.sh',
    tools: ['flock', 'setpriv'],
  },
  cc: { what: 'a C compiler', tools: ['cc'] },
  python: { what: 'Python 3', tools: ['python3'] },
};

const usage = `usage: provision.mjs NAME...          provide these components (needs no root, except to install missing tools with apt)
       provision.mjs --check NAME...  print each one's folder; exit 1 and print the providing command when one is missing
       provision.mjs --list           the names`;

function onPath(program) {
  return (process.env.PATH ?? '').split(delimiter).some((folder) => {
    try {
      accessSync(join(folder, program), constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
}

/** Debian packages of the tools that this component lacks. */
function missingPackages(name) {
  return components[name].tools.filter((tool) => !onPath(tool)).flatMap((tool) => tools[tool].split(' '));
}

/** The component's folder ('' for programs of the machine), or undefined when it is not provided. */
function check(name) {
  const { script } = components[name];
  if (script === undefined) return missingPackages(name).length === 0 ? '' : undefined;
  const run = spawnSync('bash', [join(here, script)], {
    env: { ...process.env, PROVISION_CHECK: '1' },
    encoding: 'utf8',
  });
  return run.status === 0 ? run.stdout.trim() : undefined;
}

function install(packages) {
  const command = `apt-get install -y --no-install-recommends ${packages.join(' ')}`;
  if (process.getuid?.() !== 0) throw new Error(`missing tools, on Debian: sudo ${command}`);
  process.stderr.write(`provision: ${command}\n`);
  const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' };
  for (const step of [
    'apt-get -qq update',
    `apt-get -qq -o DPkg::Lock::Timeout=300 ${command.slice('apt-get '.length)}`,
  ]) {
    const run = spawnSync('sh', ['-c', step], { env, encoding: 'utf8' });
    // A failing update of a list that is not needed must not stop the installation.
    if (run.status !== 0 && step.includes(' install '))
      throw new Error(`failed: ${command}\n${run.stderr.trim().split('\n').slice(-3).join('\n')}`);
  }
}

function provide(name) {
  const packages = missingPackages(name);
  if (packages.length > 0) install(packages);
  const { script } = components[name];
  if (script === undefined) return;
  const run = spawnSync('bash', [join(here, script)], { stdio: ['ignore', 'inherit', 'inherit'] });
  if (run.status !== 0) throw new Error(`${name} could not be provided`);
}

function main(args) {
  if (args.includes('--list')) {
    for (const [name, { what }] of Object.entries(components)) console.log(`${name.padEnd(10)} ${what}`);
    return 0;
  }
  const only = args[0] === '--check';
  const names = only ? args.slice(1) : args;
  const wrong = names.find((name) => !Object.hasOwn(components, name));
  if (names.length === 0 || wrong !== undefined) {
    console.error(
      wrong === undefined ? usage : `provision: no component ${wrong}; there are: ${Object.keys(components).join(' ')}`,
    );
    return 2;
  }
  let status = 0;
  for (const name of names) {
    if (only) {
      const folder = check(name);
      console.log(folder ?? `node scripts/provision/provision.mjs ${name}`);
      if (folder === undefined) status = 1;
      continue;
    }
    try {
      provide(name);
    } catch (error) {
      console.error(`provision: ${error.message}`);
      status = 1;
    }
  }
  return status;
}

process.exitCode = main(process.argv.slice(2));
