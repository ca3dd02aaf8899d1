/**
 * The fingerprint of a wiring: FNV-1a, 64 bits, over a canonical text of its nodes. It says that two programs compute
 * the same function; it is no protection against forgery (checksums of checkpoints are SHA-256, elsewhere).
 */
import type { Graph, Tensor } from './types.js';

const PRIME = 0x100000001b3n;
const BASIS = 0xcbf29ce484222325n;

/** 16 hexadecimal digits. Text is hashed as UTF-8 (wiring text is ASCII). Source: Fowler, Noll, Vo. */
export function fnv1a64(text: string): string {
  let hash = BASIS;
  for (const byte of new TextEncoder().encode(text))
    hash = ((hash ^ BigInt(byte)) * PRIME) & 0xffffffffffffffffn;
  return hash.toString(16).padStart(16, '0');
}

/** One line a node: scope, op, operands by the number of the node that made them or their name in the store, attributes. */
export function canonicalText(graph: Graph): string {
  const made = new Map<Tensor, string>();
  const operand = (tensor: Tensor | null): string => {
    if (!tensor) return '-';
    if (tensor.place.kind === 'store') return `${tensor.place.tensor.name}[${tensor.shape.join(',')}]`;
    return made.get(tensor)!;
  };
  return graph.nodes
    .map((node, index) => {
      const inputs = node.inputs.map(operand).join(' ');
      node.outputs.forEach((output, position) => output && made.set(output, `%${index}.${position}`));
      const attrs = Object.keys(node.attrs)
        .sort()
        .map((name) => `${name}=${node.attrs[name]}`)
        .join(' ');
      return `${node.scope} ${node.op} (${inputs}) {${attrs}}`;
    })
    .join('\n');
}
