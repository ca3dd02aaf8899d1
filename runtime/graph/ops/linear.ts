/** y = x·Wᵀ, and its two gradients. */
import { elements, traffic, whenAccumulating } from '../cost.js';
import type { Wire } from '../combinators.js';
import type { DType, OpSpec, OpView, Tensor } from '../types.js';

/** 2·N·K·O for operands [N,K] and [N,O] or [O,K], whichever two the op has. */
const product = (rows: number, view: OpView, weight: readonly number[]): number =>
  2 * rows * weight[0]! * (weight[1] ?? 1) + (view.attrs['accumulate'] ? elements(view.outputs[0]) : 0);

export const LINEAR: OpSpec = {
  name: 'linear',
  signature: 'x: act[N,K], weight: weight[O,K] -> y: act|f32[N,O]',
  cost: (view) => ({
    flops: product(view.inputs[0]!.shape[0]!, view, view.inputs[1]!.shape),
    bytes: traffic(view),
  }),
  gradient(tape, node) {
    const [x, weight] = node.inputs;
    const dy = tape.take(node.outputs[0]);
    if (!dy) return;
    const at = tape.at(node);
    const target = tape.parameterGradient(weight);
    if (target)
      at.emit(LINEAR_WGRAD, [dy, x!], {
        attrs: { accumulate: target.accumulate },
        into: { dweight: target.tensor },
      });
    if (!tape.needs(x)) return;
    const sum = tape.owned(x, dy);
    const [dx] = at.emit(LINEAR_DGRAD, [dy, weight!], {
      attrs: { accumulate: sum ? 1 : 0 },
      ...(sum && { into: { dx: sum } }),
    });
    if (!sum) tape.give(x, dx!);
  },
};

export const LINEAR_DGRAD: OpSpec = {
  name: 'linear_dgrad',
  signature: 'dy: act[N,O], weight: weight[O,K] -> dx: act[N,K]',
  attrs: ['accumulate'],
  modifies: whenAccumulating(0),
  cost: (view) => ({
    flops: product(view.inputs[0]!.shape[0]!, view, view.inputs[1]!.shape),
    bytes: traffic(view, whenAccumulating(0)(view)),
  }),
};

export const LINEAR_WGRAD: OpSpec = {
  name: 'linear_wgrad',
  signature: 'dy: act[N,O], x: act[N,K] -> dweight: f32|bf16[O,K]',
  attrs: ['accumulate'],
  modifies: whenAccumulating(0),
  cost: (view) => ({
    flops: product(view.inputs[0]!.shape[0]!, view, view.outputs[0]!.shape),
    bytes: traffic(view, whenAccumulating(0)(view)),
  }),
};

/** x act [N,K], weight [O,K] → [N,O] in the activation dtype, or f32 where it is asked for (logits). */
export const linear =
  (weight: Tensor, dtype?: DType): Wire =>
  (x, at) =>
    at.emitOne(LINEAR, [x, weight], dtype ? { dtypes: { y: dtype } } : {});

/** As `linear`, into a tensor that exists. */
export const linearInto =
  (weight: Tensor, y: Tensor): Wire =>
  (x, at) =>
    at.emitOne(LINEAR, [x, weight], { into: { y } });
