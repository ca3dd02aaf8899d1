/**
 * Recompute per block (checkpointing): what a block made inside is dropped after its forward pass and made again just
 * before its backward pass needs it. Only what crosses a block's border is kept. The arithmetic is the same, so
 * gradients are bit-equal.
 */
import { RMS_NORM } from '../ops/rms-norm.js';
import { Recorder } from '../recorder.js';
import type { Graph, Node, Tensor } from '../types.js';

/** `blockOf` names the block of a scope (`model.layers.3`), null for what belongs to none. */
export function recomputeBlocks(graph: Graph, blockOf: (scope: string) => string | null): Graph {
  const recorder = Recorder.resume(graph, 'backward');
  const forward = graph.nodes.filter((node) => node.phase === 'forward');
  const producer = new Map<Tensor, Node>();
  for (const node of forward)
    for (const output of node.outputs) if (output?.place.kind === 'arena') producer.set(output, node);
  const kept = keptTensors(forward, producer, blockOf);

  /** What stands for a tensor in the backward pass. */
  const again = new Map<Tensor, Tensor>();
  const nodes: Node[] = [];
  const remake = (tensor: Tensor): Tensor => {
    const node = producer.get(tensor);
    if (!node || kept.has(tensor) || blockOf(node.scope) === null) return tensor;
    const known = again.get(tensor);
    if (known) return known;
    const copy = reduced(node, kept);
    const inputs = copy.inputs.map((input) => input && remake(input));
    const outputs = copy.outputs.map((output) => {
      if (!output) return null;
      const fresh = recorder.arena(`${output.name}.again`, output);
      again.set(output, fresh);
      return fresh;
    });
    nodes.push({ ...copy, inputs, outputs, phase: 'backward' });
    return again.get(tensor)!;
  };
  for (const node of graph.nodes) {
    const inputs =
      node.phase === 'backward' ? node.inputs.map((input) => input && remake(input)) : node.inputs;
    nodes.push({ ...node, inputs });
  }
  return { ...graph, nodes };
}

/** Made in one block and used in another, or in none; and the sum with which a block begins. */
function keptTensors(
  forward: readonly Node[],
  producer: ReadonlyMap<Tensor, Node>,
  blockOf: (scope: string) => string | null,
): Set<Tensor> {
  const kept = new Set<Tensor>();
  for (const node of forward) {
    const block = blockOf(node.scope);
    const foreign = node.inputs.filter((input) => {
      const source = input && producer.get(input);
      return source && blockOf(source.scope) !== block;
    });
    // A fused add + norm at the border keeps its sum; the two terms then need not stay.
    if (node.op === 'add_rms_norm' && foreign.length === 2) kept.add(node.outputs[0]!);
    else for (const input of foreign) kept.add(input!);
  }
  return kept;
}

/** A fused add + norm whose sum is kept is made again as the norm alone; both round the sum before the norm reads it. */
function reduced(node: Node, kept: ReadonlySet<Tensor>): Node {
  const [sum, y, rstd] = node.outputs;
  if (node.op !== 'add_rms_norm' || !kept.has(sum!)) return node;
  return { ...node, op: RMS_NORM.name, inputs: [sum!, node.inputs[2]!], outputs: [y!, rstd!] };
}
