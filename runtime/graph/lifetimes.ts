/** When each tensor of the arena is alive, and which tensors share memory. */
import { tensorBytes } from '../program.js';
import { opSpec } from './ops/registry.js';
import type { Node, Tensor } from './types.js';

/** One piece of the arena: the tensors that use it one after another, and the ops between which it is taken. */
export interface Buffer {
  readonly tensors: Tensor[];
  readonly bytes: number;
  /** Indices of the first and the last op that touch it. */
  readonly first: number;
  last: number;
}

/**
 * Buffers of all arena tensors. An output takes over the memory of an input where the op's contract allows it, the input
 * is not used afterwards and is no other operand of the op as well. `excluded` tensors live elsewhere (taps).
 */
export function findBuffers(nodes: readonly Node[], excluded: ReadonlySet<Tensor>): Buffer[] {
  const inArena = (tensor: Tensor | null | undefined): tensor is Tensor =>
    !!tensor && tensor.place.kind === 'arena' && !excluded.has(tensor);
  const lastUse = new Map<Tensor, number>();
  nodes.forEach((node, index) => {
    for (const tensor of [...node.inputs, ...node.outputs]) if (inArena(tensor)) lastUse.set(tensor, index);
  });
  const buffers: Buffer[] = [];
  const bufferOf = new Map<Tensor, Buffer>();
  nodes.forEach((node, index) => {
    const reused = new Set<Buffer>();
    node.outputs.forEach((output, position) => {
      if (!inArena(output) || bufferOf.has(output)) return;
      const bytes = tensorBytes(output.dtype, output.shape);
      const inherited = (opSpec(node.op).inPlace ?? [])
        .filter(([to]) => to === position)
        .map(([, from]) => node.inputs[from])
        .filter((input) => inArena(input) && lastUse.get(input) === index && isSole(input, node))
        .map((input) => bufferOf.get(input!))
        .find((buffer) => buffer && buffer.bytes === bytes && !reused.has(buffer));
      const buffer = inherited ?? { tensors: [], bytes, first: index, last: index };
      if (inherited) reused.add(inherited);
      else buffers.push(buffer);
      buffer.tensors.push(output);
      buffer.last = Math.max(buffer.last, lastUse.get(output)!);
      bufferOf.set(output, buffer);
    });
  });
  return buffers;
}

const isSole = (input: Tensor, node: Node): boolean =>
  node.inputs.filter((other) => other === input).length === 1;

/** Most bytes alive at once: no placement can need less. */
export function liveBytes(buffers: readonly Buffer[]): number {
  const changes = new Map<number, number>();
  const add = (at: number, bytes: number): void => void changes.set(at, (changes.get(at) ?? 0) + bytes);
  for (const { first, last, bytes } of buffers) {
    add(first, bytes);
    add(last + 1, -bytes);
  }
  let live = 0;
  let peak = 0;
  for (const at of [...changes.keys()].sort((a, b) => a - b)) {
    live += changes.get(at)!;
    peak = Math.max(peak, live);
  }
  return peak;
}
