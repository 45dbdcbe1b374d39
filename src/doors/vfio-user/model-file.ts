/** A device model of the user's own, from a file: its default export, or the only export that is one. */
import { existsSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { basename, dirname, join, resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import { type DeviceModel, models } from '../../host/index.ts';
import { ServeError } from './served-device.ts';

/** The models that a machine needs for `--model`, and the name of the one that is meant. ServeError. */
export async function findModel(nameOrPath: string): Promise<{ name: string; models: Map<string, DeviceModel> }> {
  if (!/[./]/.test(nameOrPath)) {
    if (models.has(nameOrPath)) return { name: nameOrPath, models: new Map() };
    throw new ServeError(`there is no device model '${nameOrPath}'; there are ${[...models.keys()].join(', ')}`);
  }
  const path = resolve(nameOrPath);
  if (!existsSync(path)) throw new ServeError(`there is no model file '${nameOrPath}'`);
  let exported: Record<string, unknown>;
  try {
    exported = await load(path);
  } catch (error) {
    if (error instanceof ServeError) throw error;
    throw new ServeError(`the model file '${nameOrPath}' cannot be loaded: ${oneLine(error)}`);
  }
  const candidates = [exported['default'], ...Object.values(exported)].filter(isModel);
  const model = candidates[0];
  if (model === undefined) {
    throw new ServeError(`the model file '${nameOrPath}' exports no device model (an object with 'name' and 'create')`);
  }
  return { name: model.name, models: new Map([[model.name, model]]) };
}

function isModel(value: unknown): value is DeviceModel {
  if (typeof value !== 'object' || value === null) return false;
  const { name, create } = value as Partial<DeviceModel>;
  return typeof name === 'string' && typeof create === 'function';
}

export function oneLine(error: unknown): string {
  const text = error instanceof Error ? ('why' in error ? String(error.why) : error.message) : String(error);
  return text.split('\n')[0]!;
}

async function load(path: string): Promise<Record<string, unknown>> {
  const needsHelp = /\.[cm]?ts$/.test(path) && !(process.features as { typescript?: unknown }).typescript;
  return needsHelp ? loadTypeScript(path) : import(pathToFileURL(path).href);
}

/** Node before 22.18 does not read TypeScript: it is translated beside the file, so that its imports are found. */
async function loadTypeScript(path: string): Promise<Record<string, unknown>> {
  let esbuild: { buildSync(options: object): unknown };
  try {
    esbuild = createRequire(import.meta.url)('esbuild');
  } catch {
    throw new ServeError(
      `this Node (${process.version}) does not read TypeScript; use Node 22.18 or later, install esbuild, or compile '${basename(path)}'`,
    );
  }
  const translated = join(dirname(path), `.${basename(path)}.${process.pid}.mjs`);
  try {
    esbuild.buildSync({
      entryPoints: [path],
      outfile: translated,
      bundle: true,
      packages: 'external',
      platform: 'node',
      format: 'esm',
      target: 'node20',
      logLevel: 'silent',
    });
    return await import(pathToFileURL(translated).href);
  } finally {
    rmSync(translated, { force: true });
  }
}
