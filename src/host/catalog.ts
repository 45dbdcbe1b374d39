/** All device models, by the name that a host file uses. A new model adds one line. */

import { bridges } from '../hw/devices/bridge/model.ts';
import { edu } from '../hw/devices/edu/model.ts';
import { gpioPciIdio16 } from '../hw/devices/gpio-pci-idio-16/model.ts';
import { ioat } from '../hw/devices/ioat/model.ts';
import { pasidWalker } from '../hw/devices/pasid-walker/model.ts';
import { serial } from '../hw/devices/serial/model.ts';
import { image } from '../hw/devices/stub/image.ts';
import { stub } from '../hw/devices/stub/model.ts';
import { testdev } from '../hw/devices/testdev/model.ts';
import type { DeviceModel } from '../hw/pci/device-model.ts';

const all: DeviceModel[] = [edu, testdev, gpioPciIdio16, ioat, pasidWalker, serial, stub, image, ...bridges];

export const models: ReadonlyMap<string, DeviceModel> = new Map(all.map((model) => [model.name, model]));
