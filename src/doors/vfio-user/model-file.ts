/** What `--model` names: a model of the catalog, or a file of the user's own. */
import { type DeviceModel, isModelFile, loadModel, models } from '../../host/index.ts';
import { ServeError } from './served-device.ts';

/** The models that a machine needs for `--model`, and the one that is meant. ServeError, HostFileError. */
export async function findModel(nameOrPath: string): Promise<{ model: DeviceModel; models: Map<string, DeviceModel> }> {
  if (isModelFile(nameOrPath) || nameOrPath.includes('/')) {
    const model = loadModel(nameOrPath);
    return { model, models: new Map([[model.name, model]]) };
  }
  const model = models.get(nameOrPath);
  if (model !== undefined) return { model, models: new Map() };
  throw new ServeError(`there is no device model '${nameOrPath}'; there are ${[...models.keys()].join(', ')}`);
}

/** The values of `--option name=value`, as a host file has them. ServeError: no such text. */
export function readModelOptions(model: DeviceModel, texts: readonly string[]): Record<string, unknown> {
  const values: Record<string, unknown> = {};
  for (const text of texts) {
    const [, name, value] = /^([^=]+)=(.*)$/s.exec(text) ?? [];
    if (name === undefined || value === undefined) throw new ServeError(`'${text}' is not an option as name=value`);
    const type = Object.hasOwn(model.options, name) ? model.options[name]!.type : 'text';
    if (type === 'boolean' && (value === 'true' || value === 'false')) values[name] = value === 'true';
    else if (type === 'list' || type === 'object') values[name] = fromJson(name, value);
    else values[name] = value;
  }
  return values;
}

function fromJson(name: string, text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    throw new ServeError(`option '${name}' takes JSON, not '${text}'`);
  }
}

export function oneLine(error: unknown): string {
  const text = error instanceof Error ? ('why' in error ? String(error.why) : error.message) : String(error);
  return text.split('\n')[0]!;
}
