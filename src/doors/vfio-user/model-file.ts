/** What `--model` names: a model of the catalog, or a file of the user's own. */
import { type DeviceModel, isModelFile, loadModel, models } from '../../host/index.ts';
import { ServeError } from './served-device.ts';

/** The models that a machine needs for `--model`, and the name of the one that is meant. ServeError, HostFileError. */
export async function findModel(nameOrPath: string): Promise<{ name: string; models: Map<string, DeviceModel> }> {
  if (isModelFile(nameOrPath) || nameOrPath.includes('/')) {
    const model = loadModel(nameOrPath);
    return { name: model.name, models: new Map([[model.name, model]]) };
  }
  if (models.has(nameOrPath)) return { name: nameOrPath, models: new Map() };
  throw new ServeError(`there is no device model '${nameOrPath}'; there are ${[...models.keys()].join(', ')}`);
}

export function oneLine(error: unknown): string {
  const text = error instanceof Error ? ('why' in error ? String(error.why) : error.message) : String(error);
  return text.split('\n')[0]!;
}
