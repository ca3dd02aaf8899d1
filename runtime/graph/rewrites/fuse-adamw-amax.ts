/** A master that was just updated is still in registers when its amax is wanted: one pass over it instead of two. */
import { ADAMW_AMAX } from '../ops/optimizer.js';
import type { Graph, Node, Tensor } from '../types.js';

/** adamw(…) → master and the first amax(master) after it → adamw_amax(…), where the update stood. */
export function fuseAdamwAmax(graph: Graph): Graph {
  const updates = new Map<Tensor, Node>();
  const fused = new Map<Node, Node>();
  const gone = new Set<Node>();
  for (const node of graph.nodes) {
    if (node.op === 'adamw') updates.set(node.outputs[0]!, node);
    const update = node.op === 'amax' ? updates.get(node.inputs[0]!) : undefined;
    if (!update || fused.has(update)) continue;
    gone.add(node);
    fused.set(update, {
      ...update,
      op: ADAMW_AMAX.name,
      outputs: [...update.outputs, node.outputs[0]!],
      attrs: { ...update.attrs, slot: node.attrs['slot']! },
    });
  }
  const nodes = graph.nodes.filter((node) => !gone.has(node)).map((node) => fused.get(node) ?? node);
  return { ...graph, nodes };
}
