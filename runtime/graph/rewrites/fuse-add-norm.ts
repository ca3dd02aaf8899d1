/**
 * Residual add + RMSNorm become one op. Applied to every program, whatever its mode, so that the same arithmetic runs
 * in training and inference.
 */
import { ADD_RMS_NORM } from '../ops/rms-norm.js';
import type { Graph, Node, Tensor } from '../types.js';

/** add(x, b) → s and the first rms_norm(s) after it → add_rms_norm(x, b), which gives s as well. */
export function fuseAddNorm(graph: Graph): Graph {
  const sums = new Map<Tensor, Node>();
  const fused = new Map<Node, Node>();
  for (const node of graph.nodes) {
    if (node.op === 'add') sums.set(node.outputs[0]!, node);
    const sum = node.op === 'rms_norm' ? sums.get(node.inputs[0]!) : undefined;
    if (!sum || fused.has(sum) || sum.phase !== node.phase) continue;
    fused.set(sum, {
      ...node,
      op: ADD_RMS_NORM.name,
      inputs: [sum.inputs[0]!, sum.inputs[1]!, node.inputs[1]!],
      outputs: [sum.outputs[0]!, node.outputs[0]!, node.outputs[1]!],
    });
  }
  const norms = new Set([...fused.values()].map((node) => node.outputs[1]));
  // Placed where the sum was made: everything the norm needs beside it is in the store.
  const nodes = graph.nodes
    .filter((node) => !(node.op === 'rms_norm' && norms.has(node.outputs[0]!)))
    .map((node) => fused.get(node) ?? node);
  return { ...graph, nodes };
}
