/**
 * The command line. What a command needs is loaded when it is asked for; the box's thread starts loading before the rest of the line
 * is read.
 *
 * Exit statuses are those of env and timeout: the program's own; 125 vfiobox itself failed or was used wrongly, 126 the program cannot be
 * executed, 127 it was not found.
 */
import type { Worker } from 'node:worker_threads';
import { startThread } from '../run/thread.ts';
import { addBoxCommands, showBox } from './box-command-line.ts';

const FAILED = 125;

/** Where the command line writes. */
export interface Streams {
  out(text: string): void;
  err(text: string): void;
}

const standard: Streams = {
  out: (text) => process.stdout.write(text),
  err: (text) => process.stderr.write(text),
};

/** Runs one command; the result is the exit status. */
export async function main(args: readonly string[], streams: Streams = standard): Promise<number> {
  const fail = (message: string): number => {
    streams.err(`vfiobox: ${message}\n`);
    return FAILED;
  };
  let thread: Worker | undefined;
  // Asking for help needs no box.
  if (args[0] === 'run' && args.length > 1 && args[1] !== '--help' && args[1] !== '-h') thread = startThread();
  const { Command, CommanderError, InvalidArgumentError, Option } = await import('commander');
  let status = 0;

  const wholeNumber = (text: string): number => {
    if (!/^\d+$/.test(text)) throw new InvalidArgumentError('expected a whole number');
    return Number(text);
  };
  const hostOption = (): InstanceType<typeof Option> =>
    new Option('--host <file|preset>', 'the machine to show: a host file (JSON or YAML) or a preset').default(
      'default',
    );

  const program = new Command('vfiobox')
    .description('Runs unmodified VFIO programs against a machine in user space: devices, IOMMU, /dev/vfio, sysfs.')
    .enablePositionalOptions()
    .exitOverride()
    .configureOutput({
      writeOut: streams.out,
      writeErr: streams.err,
      outputError: (text, write) => write(`vfiobox: ${text.replace(/^error: /, '')}`),
    });

  program
    .command('run')
    .description('Run a program in a box of its own, without root and without hardware')
    .passThroughOptions()
    .argument('<program>', 'what to run')
    .argument('[arguments...]', 'its arguments')
    .addOption(hostOption())
    .option('--explain', 'print each refused call with its reason on stderr', false)
    .option('--trace <file>', 'write every call, map, fault and interrupt to a file, one JSON object a line')
    .option('--seed <number>', 'seed of everything random in the machine', wholeNumber)
    .addOption(
      new Option('--sysfs <way>', 'how /sys is shown: mounted in a namespace, by rewriting paths, or whatever works')
        .choices(['auto', 'mount', 'rewrite'])
        .default('auto'),
    )
    .option('--name <name>', "what to call the box in 'vfiobox host … --box NAME' (its process number always works)")
    .option('--control <path>', 'where its control socket is, instead of the folder of the user')
    .addOption(new Option('--check-left', 'print what was left at the end, and fail when it is not nothing').hideHelp())
    .addOption(new Option('--timings', 'print where the time of the start went').hideHelp())
    .action(async (name: string, rest: string[], options: RunFlags) => {
      const { run, RunError } = await import('../run/run.ts');
      try {
        status = await run(
          {
            host: options.host,
            explain: options.explain,
            trace: options.trace,
            seed: options.seed,
            sysfs: options.sysfs,
            checkLeft: options.checkLeft ?? false,
            timings: options.timings ?? false,
            name: options.name,
            control: options.control,
            command: [name, ...rest],
          },
          thread ?? startThread(),
        );
      } catch (error) {
        if (!(error instanceof RunError)) throw error;
        status = fail(error.message);
      }
    });

  program
    .command('serve')
    .description('Give one device to a VMM: a vfio-user server')
    .addOption(new Option('--host <file|preset>', 'the machine that has the device').conflicts('model'))
    .addOption(new Option('--device <bdf>', 'which function of it, e.g. 00:04.0').conflicts('model'))
    .option('--model <name|file>', 'instead: one device by the name of its model, or from a file (.js, .ts)')
    .addOption(
      new Option('--option <name=value...>', 'an option of that model; lists and objects as JSON').conflicts(['host']),
    )
    .addOption(new Option('--socket-path <path>', 'where to listen').conflicts('fd'))
    .addOption(new Option('--fd <number>', 'a socket that was inherited').argParser(wholeNumber))
    .option('--print-capabilities', 'print what this program can do as JSON, and nothing else', false)
    .addOption(
      new Option('--dma <way>', "how the client's memory is reached: as it offers it, or always by this way")
        .choices(['auto', 'message', 'file', 'mapped'])
        .default('auto'),
    )
    .option(
      '--spin <microseconds>',
      'look for the next message so long before sleeping, at most 1000: quicker answers for processor time',
      (text) => {
        if (wholeNumber(text) > 1000) throw new InvalidArgumentError('expected at most 1000');
        return Number(text);
      },
    )
    .option('--strict-unmap', 'refuse unmaps of anything but one exact map', false)
    .option('--explain', 'print each refused message with its reason on stderr', false)
    .option('--trace <file>', 'write every message, map, fault and interrupt to a file, one JSON object a line')
    .option('--pcap <file>', 'write every message to a file that Wireshark reads (docs/vfio-user-capture.md)')
    .action(async (options: ServeFlags) => {
      const { backendCapabilities, serve, ServeRefused } = await import('../vfio-user/serve.ts');
      if (options.printCapabilities) {
        streams.out(`${JSON.stringify(backendCapabilities)}\n`);
        return;
      }
      const { host: hostName, device, model, socketPath, fd } = options;
      if (model === undefined && device === undefined) {
        status = fail('nothing to serve: give --model NAME, or --host FILE and --device BDF');
        return;
      }
      if (socketPath === undefined && fd === undefined) {
        status = fail('nowhere to serve: give --socket-path PATH or --fd N');
        return;
      }
      const { dma, strictUnmap, explain, trace, pcap, option, spin } = options;
      const what =
        model !== undefined ? { model, options: option ?? [] } : { host: hostName ?? 'default', device: device! };
      const where = fd !== undefined ? { fd } : { path: socketPath! };
      try {
        status = await serve({ what, where, dma, strictUnmap, explain, trace, pcap, spin });
      } catch (error) {
        if (!(error instanceof ServeRefused)) throw error;
        status = fail(error.message);
      }
    });

  const host = program
    .command('host')
    .description('Look at the machine that programs will see, and change it while it runs');
  const hostCommand = (name: string, description: string): void => {
    host
      .command(name)
      .description(description)
      .addOption(hostOption())
      .addOption(
        new Option('--box <name|pid|path>', 'instead: a box that is running')
          .conflicts('host')
          .hideHelp(name === 'check'),
      )
      .action(async (options: { host: string; box?: string }) => {
        if (options.box !== undefined && name !== 'check') {
          status = await showBox(name, options.box, { ...streams, fail });
          return;
        }
        const { hostCommands } = await import('./host-commands.ts');
        status = hostCommands(name, options.host, streams.out, fail);
      });
  };
  hostCommand('ls', 'list its functions, as lspci does');
  host
    .command('groups')
    .description('list its IOMMU groups, and why each member is where it is')
    .argument('[bdf]', 'only the group of this function, e.g. 00:04.0')
    .addOption(hostOption())
    .option('--why', 'for each pair of members: what joins them, and what would part them', false)
    .addOption(new Option('--json', 'the same as JSON').conflicts(['dot', 'svg']))
    .addOption(new Option('--dot', 'a drawing for Graphviz').conflicts(['json', 'svg']))
    .addOption(new Option('--svg', 'a drawing').conflicts(['json', 'dot']))
    .addOption(
      new Option('--box <name|pid|path>', 'instead: a box that is running').conflicts([
        ...['host', 'why', 'json', 'dot', 'svg'],
      ]),
    )
    .action(async (address: string | undefined, options: GroupsOptions) => {
      const { host: machine, json, dot, svg, box } = options;
      if (box !== undefined) {
        status = await showBox('groups', box, { ...streams, fail });
        return;
      }
      const { hostGroups } = await import('./host-commands.ts');
      const why = options.why || address !== undefined || json === true || dot === true || svg === true;
      const form = { json: json ?? false, dot: dot ?? false, svg: svg ?? false };
      status = hostGroups({ host: machine, why, address, ...form }, streams.out, fail);
    });
  hostCommand('check', 'check a host file');
  host
    .command('import')
    .description('make a host file of a dump of a real machine')
    .argument('<source>', 'a copied /sys/bus/pci/devices, or a file: lspci -xxxx -D, umockdev-record, lspci -t')
    .option('-o, --output <file>', 'where to write the host file, instead of standard output')
    .option('--name <name>', 'its name, instead of that of the source')
    .addOption(
      new Option('--acs <state>', 'state of ACS: as it was dumped, as Linux switches it on, or what the dump suggests')
        .choices(['auto', 'dumped', 'boot'])
        .default('auto'),
    )
    .action(async (source: string, options: ImportFlags) => {
      const { hostImport } = await import('./host-import.ts');
      status = hostImport({ source, ...options }, streams, fail);
    });
  addBoxCommands(host, { ...streams, fail }, (ended) => {
    status = ended;
  });

  program
    .command('walk')
    .description(
      'Show what the IOMMU does with an address of a device: every table entry, the IOTLB, and why it ends as it does',
    )
    .argument('<iova>', 'the address, e.g. 0x100000')
    .requiredOption('--device <bdf>', 'the function that asks, e.g. 00:04.0')
    .option('--pasid <number>', 'the PASID of the request')
    .addOption(hostOption().conflicts('box'))
    .option('--box <name|pid|path>', 'instead: a box that is running')
    .option('--json', 'as JSON', false)
    .action(async (iova: string, options: WalkFlags) => {
      const { walkInBox, walkInHost, walkRequest } = await import('./walk-command.ts');
      const { device, pasid, box, host: hostName, json } = options;
      const request = walkRequest(device, pasid, iova);
      if (typeof request === 'string') status = fail(request);
      else if (box !== undefined) status = await walkInBox(box, request, json, { ...streams, fail });
      else status = walkInHost(hostName, request, json, streams.out, fail);
    });

  program
    .command('decode')
    .description(
      "Explain IOMMU faults of a real machine: the lines of a kernel's log with DMAR or AMD-Vi, dumps of tables too",
    )
    .argument('[file]', 'the log, or - for the standard input', '-')
    .option('--json', 'as JSON', false)
    .action(async (file: string, options: { json: boolean }) => {
      const { decodeCommand } = await import('./decode-command.ts');
      status = decodeCommand(file, options.json, streams.out, fail);
    });

  try {
    await program.parseAsync([...args], { from: 'user' });
  } catch (error) {
    if (!(error instanceof CommanderError)) throw error;
    // Help and version were asked for; everything else is wrong usage.
    status = error.exitCode === 0 ? 0 : FAILED;
  }
  await thread?.terminate();
  return status;
}

interface ServeFlags {
  host?: string;
  device?: string;
  model?: string;
  socketPath?: string;
  fd?: number;
  printCapabilities: boolean;
  dma: 'auto' | 'message' | 'file' | 'mapped';
  strictUnmap: boolean;
  option?: string[];
  spin?: number;
  explain: boolean;
  trace?: string;
  pcap?: string;
}

interface WalkFlags {
  device: string;
  pasid?: string;
  host: string;
  box?: string;
  json: boolean;
}

interface ImportFlags {
  output?: string;
  name?: string;
  acs: 'auto' | 'dumped' | 'boot';
}

interface GroupsOptions {
  host: string;
  box?: string;
  why: boolean;
  json?: boolean;
  dot?: boolean;
  svg?: boolean;
}

interface RunFlags {
  name?: string;
  control?: string;
  host: string;
  explain: boolean;
  trace?: string;
  seed?: number;
  sysfs: 'auto' | 'mount' | 'rewrite';
  checkLeft?: boolean;
  timings?: boolean;
}
