/** The predecessor's debugging loss, scale·Σ|x − target|; its gradient comes with the forward pass. */
import { elementwise } from '../cost.js';
import type { Recorder } from '../recorder.js';
import type { OpSpec, Tensor } from '../types.js';

export const L1_LOSS: OpSpec = {
  name: 'l1_loss',
  signature: 'x: act[N,C], target: f32[N,C], scale: f32[1] -> loss: f32[1], dx?: act[N,C]',
  attrs: ['accumulate'],
  modifies: (view) => (view.attrs['accumulate'] ? [0] : []),
  cost: elementwise(3),
  gradient(tape, node) {
    const x = node.inputs[0]!;
    if (!tape.needs(x)) return;
    const dx = tape.at(node).arena(`${node.scope}.dx`, x);
    tape.replace(node, { ...node, outputs: [node.outputs[0]!, dx] });
    tape.give(x, dx);
  },
};

/** x act [N,C], target f32 [N,C], scale f32 [1] → loss f32 [1]. */
export function l1Loss(
  operands: { x: Tensor; target: Tensor; scale: Tensor; loss: Tensor },
  accumulate: boolean,
  at: Recorder,
): void {
  const { x, target, scale, loss } = operands;
  at.emit(L1_LOSS, [x, target, scale], { attrs: { accumulate: accumulate ? 1 : 0 }, into: { loss } });
}
