/**
 * Device models in files: JavaScript or TypeScript with one `device(…)` as its default export. esbuild strips the types and joins
 * what the file imports, the kit included, so that any Node runs it and no package has to be installed next to the file.
 */
import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { relative, resolve } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { compileFunction } from 'node:vm';
import type { DeviceModel } from '../hw/pci/device-model.ts';
import { HostFileError, isModelFile } from './host-file.ts';

const require = createRequire(import.meta.url);

/** The expression for a module's own address; in pieces, since the build replaces it wherever it stands. */
const ownAddress = ['import', 'meta', 'url'].join('.');

/** The kit as models import it: the compiled `vfiobox/device`. */
const kit = fileURLToPath(new URL('../device.js', import.meta.url));

/**
 * Loads the model of a file. HostFileError, in one line: there is no such file, it is not valid, it throws, it exports no model.
 * Which BARs and capabilities it declares is checked when a function is made of it.
 */
export function loadModel(path: string): DeviceModel {
  const file = resolve(path);
  const shown = shortest(file);
  if (!isModelFile(file)) throw new HostFileError(`model file ${shown} must end in .ts, .mts, .js, .mjs or .cjs`);
  if (!existsSync(file)) throw new HostFileError(`there is no model file ${shown}`);
  const exports = run(file, compile(file, shown), shown);
  const model = exports['default'];
  if (!isModel(model)) {
    throw new HostFileError(
      `model file ${shown} must have a device as its default export: export default device({ … })`,
    );
  }
  return model;
}

function compile(file: string, shown: string): string {
  let esbuild: typeof import('esbuild');
  try {
    esbuild = require('esbuild') as typeof import('esbuild');
  } catch {
    throw new HostFileError(`model file ${shown} needs the package esbuild, which is not installed: run 'npm ci'`);
  }
  try {
    const { outputFiles } = esbuild.buildSync({
      entryPoints: [file],
      bundle: true,
      write: false,
      platform: 'node',
      format: 'cjs',
      target: 'node20',
      alias: { 'vfiobox/device': kit },
      define: { [ownAddress]: JSON.stringify(pathToFileURL(file).href) },
      sourcemap: 'inline',
      logLevel: 'silent',
    });
    return outputFiles[0]!.text;
  } catch (error) {
    const first = (error as { errors?: readonly EsbuildMessage[] }).errors?.[0];
    if (first === undefined) throw new HostFileError(`model file ${shown} cannot be read: ${firstLine(error)}`);
    const { location } = first;
    const where = location ? `${shortest(resolve(location.file))}:${location.line}: ` : '';
    throw new HostFileError(`model file ${shown} is not valid: ${where}${firstLine(first.text)}`);
  }
}

interface EsbuildMessage {
  readonly text: string;
  readonly location: { readonly file: string; readonly line: number } | null;
}

function run(file: string, code: string, shown: string): Record<string, unknown> {
  const module: { exports: Record<string, unknown> } = { exports: {} };
  try {
    const body = compileFunction(code, ['require', 'module', 'exports'], { filename: file });
    body(createRequire(file), module, module.exports);
  } catch (error) {
    throw new HostFileError(`model file ${shown} throws when it is loaded: ${firstLine(error)}`);
  }
  return module.exports;
}

function isModel(value: unknown): value is DeviceModel {
  const model = value as Partial<DeviceModel> | null | undefined;
  return (
    typeof model === 'object' &&
    typeof model?.name === 'string' &&
    typeof model.options === 'object' &&
    typeof model.create === 'function'
  );
}

function firstLine(error: unknown): string {
  const text = error instanceof Error ? ('why' in error ? String(error.why) : error.message) : String(error);
  return text.split('\n')[0]!;
}

/** As a person would write it here. */
function shortest(file: string): string {
  const short = relative('', file);
  return short.startsWith('../../') || short.length > file.length ? file : short;
}
