/** Drops nodes whose results nothing uses: the last layers' work when only the cache is wanted. */
import type { Graph, Node, Tensor } from '../types.js';

/** Nodes that write to the store stay, and all that they need. */
export function prune(graph: Graph): Graph {
  const used = new Set<Tensor>();
  const kept: Node[] = [];
  for (const node of [...graph.nodes].reverse()) {
    const alive = node.outputs.some(
      (output) => output && (output.place.kind === 'store' || used.has(output)),
    );
    if (!alive) continue;
    kept.push(node);
    for (const input of node.inputs) if (input) used.add(input);
  }
  return { ...graph, nodes: kept.reverse() };
}
