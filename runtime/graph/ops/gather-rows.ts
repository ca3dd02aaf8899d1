/** y[m] = x[rows[m]]: the rows whose logits are wanted. */
import { payloadBytes } from '../cost.js';
import type { Wire } from '../combinators.js';
import type { OpSpec, Tensor } from '../types.js';

export const GATHER_ROWS: OpSpec = {
  name: 'gather_rows',
  signature: 'x: act[N,C], rows: i32[M] -> y: act[M,C]',
  cost: (view) => ({ flops: 0, bytes: payloadBytes(view.inputs[1]) + 2 * payloadBytes(view.outputs[0]) }),
};

/** x act [N,C], rows i32 [M] → act [M,C]. */
export const gatherRows =
  (rows: Tensor): Wire =>
  (x, at) =>
    at.emitOne(GATHER_ROWS, [x, rows]);
