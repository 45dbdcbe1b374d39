/** How the commands for running boxes are written on the command line. */
import type { Command } from 'commander';
import type { BoxStreams, PlugFlags } from './box-commands.ts';

interface Flags {
  box?: string;
  wait: boolean;
  json: boolean;
}

const BOX = ['--box <name|pid|path>', 'which running box; may be left out when only one is running'] as const;

/** Adds them to `vfiobox host`. `ended` takes the exit status of the one that ran. */
export function addBoxCommands(host: Command, streams: BoxStreams, ended: (status: number) => void): void {
  host
    .command('boxes')
    .description('list the boxes that are running')
    .action(async () => {
      const { listBoxes } = await import('./box-commands.ts');
      ended(await listBoxes(streams));
    });
  host
    .command('bind')
    .description('in a running box, give a function to a driver; whatever driver has it lets go first')
    .argument('<address>', 'the function, e.g. 0000:00:04.0')
    .argument('[driver]', 'the driver', 'vfio-pci')
    .option(...BOX)
    .option('--no-wait', 'do not wait for programs that hold the function')
    .action(async (address: string, driver: string, { box, wait }: Flags) => {
      const { askBox } = await import('./box-commands.ts');
      ended(await askBox('bind', { function: address, driver }, { box, wait }, streams));
    });
  host
    .command('unbind')
    .description('in a running box, take a function away from its driver; waits while programs hold it')
    .argument('<address>', 'the function')
    .option(...BOX)
    .option('--no-wait', 'do not wait')
    .action(async (address: string, { box, wait }: Flags) => {
      const { askBox } = await import('./box-commands.ts');
      ended(await askBox('unbind', { function: address }, { box, wait }, streams));
    });
  host
    .command('plug')
    .description('put a function into a slot of a running box')
    .argument('[file]', "an entry of a host file's functions, or several (JSON or YAML); - for standard input")
    .option('--model <name|file>', 'instead: the model of one function')
    .option('--at <address>', 'and where it stands')
    .option('--driver <name>', 'the driver that gets it')
    .option('--option <name=value...>', 'options of the model')
    .option('--json', 'print what it became as JSON', false)
    .option(...BOX)
    .action(async (file: string | undefined, flags: PlugFlags & Flags) => {
      const { plug } = await import('./box-commands.ts');
      ended(await plug(file, flags, { box: flags.box, json: flags.json }, streams));
    });
  host
    .command('unplug')
    .description('take a function, and what is behind it, out of a running box; waits while programs hold it')
    .argument('<address>', 'the function')
    .option('--pull', 'at once, without asking: programs that hold it find it gone', false)
    .option(...BOX)
    .option('--no-wait', 'do not wait')
    .action(async (address: string, { box, wait, pull }: Flags & { pull: boolean }) => {
      const { askBox } = await import('./box-commands.ts');
      ended(await askBox('unplug', { function: address, pull }, { box, wait }, streams));
    });
}

/** Prints the lines of `ls` or `groups` of a running box. */
export async function showBox(command: string, box: string, streams: BoxStreams): Promise<number> {
  const { askBox } = await import('./box-commands.ts');
  return askBox(command, {}, { box }, streams, ({ lines }: { lines: string[] }) => lines);
}
