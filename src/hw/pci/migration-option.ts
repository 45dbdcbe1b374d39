/** The option by which the catalog's models say whether programs can migrate them. */
import type { ModelOption } from './device-model.ts';
import type { MigrationAbility } from './function-spec.ts';

export const migrationOption: ModelOption = {
  type: 'text',
  choices: ['none', 'stop-copy', 'p2p', 'pre-copy', 'all'],
  default: 'none',
  description: 'Whether its state can be carried over (VFIO migration), and with which optional states',
};

/** What the option's value means; to be spread into a `FunctionSpec`. */
export function migrationOf(value: unknown): { migration?: MigrationAbility } {
  switch (value) {
    case 'stop-copy':
      return { migration: {} };
    case 'p2p':
      return { migration: { p2p: true } };
    case 'pre-copy':
      return { migration: { preCopy: true } };
    case 'all':
      return { migration: { p2p: true, preCopy: true } };
    default:
      return {};
  }
}
