/** RMSNorm over each head, then RoPE, and its gradient. */
import { elementwise, whenAccumulating } from '../cost.js';
import type { Wire } from '../combinators.js';
import type { DeviceKind, OpSpec, OpView, Tensor } from '../types.js';

const checkHeads = (view: OpView): string | null => {
  const width = view.inputs[0]!.shape[1]!;
  const dim = view.attrs['head_dim']!;
  return dim % 2 === 0 && width % dim === 0
    ? null
    : `a width of ${width} is not whole heads of an even ${dim}`;
};

export const HEAD_NORM_ROPE: OpSpec = {
  name: 'head_norm_rope',
  signature: 'x: act[N,W], weight: f32[head_dim], positions: i32[N] -> y: act[N,W], rstd: f32[N,W/head_dim]',
  attrs: ['head_dim', 'eps', 'theta'],
  check: checkHeads,
  cost: elementwise(8),
  gradient(tape, node) {
    const [x, weight, positions] = node.inputs;
    const dy = tape.take(node.outputs[0]);
    if (!dy) return;
    const target = tape.parameterGradient(weight);
    if (!target && !tape.needs(x)) return;
    const { head_dim, theta } = node.attrs;
    const [dx] = tape
      .at(node)
      .emit(HEAD_NORM_ROPE_BACKWARD, [dy, x!, weight!, node.outputs[1]!, positions!], {
        attrs: { head_dim: head_dim!, theta: theta!, accumulate: target?.accumulate ?? 0 },
        into: { dweight: target?.tensor ?? null },
      });
    tape.give(x, dx!);
  },
};

export const HEAD_NORM_ROPE_BACKWARD: OpSpec = {
  name: 'head_norm_rope_backward',
  signature:
    'dy: act[N,W], x: act[N,W], weight: f32[head_dim], rstd: f32[N,W/head_dim], positions: i32[N] -> dx: act[N,W], dweight?: f32[head_dim], scratch?: f32[*]',
  attrs: ['head_dim', 'theta', 'accumulate'],
  check: checkHeads,
  modifies: whenAccumulating(1),
  scratch: (view, device) => (view.outputs[1] ? [PARTIALS[device] * view.attrs['head_dim']!] : null),
  cost: elementwise(14),
};

/** Row groups of the sum over tokens; see rms-norm.ts. */
const PARTIALS: Record<DeviceKind, number> = { cpu: 64, cuda: 64 };

/** x act [N, heads·D], positions i32 [N] → act [N, heads·D]. */
export const headNormRope =
  (weight: Tensor, positions: Tensor, settings: { headDim: number; eps: number; theta: number }): Wire =>
  (x, at) =>
    at.emitOne(HEAD_NORM_ROPE, [x, weight, positions], {
      attrs: { head_dim: settings.headDim, eps: settings.eps, theta: settings.theta },
    });
