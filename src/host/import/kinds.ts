/**
 * What a bridge is, where a dump does not show it: from its name if somebody wrote one, else from what is behind it. A link of PCI
 * Express has one device, number 0; a bus with other numbers is one of conventional PCI, or the inside of a switch.
 */
import type { Node } from './buses.ts';

export type Kind =
  | 'root-port'
  | 'switch-upstream'
  | 'switch-downstream'
  | 'pcie-pci-bridge'
  | 'pci-bridge'
  | 'endpoint'
  | 'conventional';

const NAMES: readonly (readonly [RegExp, Kind])[] = [
  [/upstream/i, 'switch-upstream'],
  [/downstream/i, 'switch-downstream'],
  [/pci(?: express|e)[- ]to[- ]pci\b|XIO2000|PI7C9X|PEX 81|ASM1083|IT889/i, 'pcie-pci-bridge'],
  [
    /root port|pci express port|pcie? (?:express )?(?:graphics|gpp) ?(?:port|bridge)|gpp bridge|pcie controller/i,
    'root-port',
  ],
  [/\b82801\b.*pci bridge|pci-to-pci|conventional/i, 'pci-bridge'],
];

const isLink = (kind: Kind): boolean => kind === 'root-port' || kind === 'switch-downstream';

/** The kind of every function, from above. */
export function kindsOf(nodes: readonly Node[]): Map<Node, Kind> {
  const kinds = new Map<Node, Kind>();
  for (const node of nodes)
    kinds.set(node, kindOf(node, node.parent === undefined ? undefined : kinds.get(node.parent)));
  return kinds;
}

function kindOf(node: Node, above: Kind | undefined): Kind {
  const isOnPci = above === 'pci-bridge' || above === 'pcie-pci-bridge';
  if (!node.isBridge) return isOnPci ? 'conventional' : 'endpoint';
  const named = NAMES.find(([pattern]) => pattern.test(node.fn.text ?? ''))?.[1];
  if (named !== undefined && !(named === 'root-port' && above !== undefined)) return named;
  if (isOnPci) return 'pci-bridge';
  if (above === 'switch-upstream') return 'switch-downstream';
  const below = node.children;
  const isCrowded = below.some(({ fn }) => fn.devfn >> 3 !== 0);
  if (above === undefined) return isCrowded && below.some((one) => !one.isBridge) ? 'pci-bridge' : 'root-port';
  if (isLink(above) && below.length > 0 && below.every((one) => one.isBridge)) return 'switch-upstream';
  return 'pcie-pci-bridge';
}
