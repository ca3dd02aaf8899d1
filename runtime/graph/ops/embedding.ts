/** y[n] = table[ids[n]], and its gradient. */
import { payloadBytes, traffic, whenAccumulating } from '../cost.js';
import type { Wire } from '../combinators.js';
import type { OpSpec, Tensor } from '../types.js';

export const EMBEDDING: OpSpec = {
  name: 'embedding',
  signature: 'table: f32|f16|bf16[V,H], ids: i32[N] -> y: act[N,H]',
  // Only the rows that are looked up move.
  cost: (view) => ({ flops: 0, bytes: payloadBytes(view.inputs[1]) + 2 * payloadBytes(view.outputs[0]) }),
  gradient(tape, node) {
    const dy = tape.take(node.outputs[0]);
    const target = tape.parameterGradient(node.inputs[0]);
    if (!dy || !target) return;
    const attrs = { accumulate: target.accumulate };
    tape.at(node).emit(EMBEDDING_BACKWARD, [dy, node.inputs[1]!], { attrs, into: { dtable: target.tensor } });
  },
};

export const EMBEDDING_BACKWARD: OpSpec = {
  name: 'embedding_backward',
  signature: 'dy: act[N,H], ids: i32[N] -> dtable: f32|bf16[V,H]',
  attrs: ['accumulate'],
  modifies: whenAccumulating(0),
  cost: (view) => ({
    flops: view.inputs[0]!.shape.reduce((a, b) => a * b, 1),
    bytes: view.attrs['accumulate'] ? 3 * payloadBytes(view.inputs[0]) : traffic(view),
  }),
};

/** ids i32 [N] → act [N,H]. */
export const embedding =
  (table: Tensor): Wire =>
  (ids, at) =>
    at.emitOne(EMBEDDING, [table, ids]);
