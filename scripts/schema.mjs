#!/usr/bin/env node
// npm run schema: writes schema/host.json, the published JSON schema of host files, from the table that checks them.
import { writeFileSync } from 'node:fs';
import { z } from 'zod';
import { hostSchema } from '../dist/src/host/host-file.js';

const schema = { title: 'vfiobox host file', ...z.toJSONSchema(hostSchema(z)) };
writeFileSync(new URL('../schema/host.json', import.meta.url), `${JSON.stringify(schema, null, 2)}\n`);
