/** RMSNorm, the fused residual add + RMSNorm, and their gradient. */
import { elementwise, whenAccumulating } from '../cost.js';
import type { Wire } from '../combinators.js';
import type { DeviceKind, Node, OpSpec, OpView, Tensor } from '../types.js';
import type { Tape } from '../gradient.js';

export const RMS_NORM: OpSpec = {
  name: 'rms_norm',
  signature: 'x: act[N,C], weight: f32[C] -> y: act[N,C], rstd: f32[N]',
  attrs: ['eps'],
  cost: elementwise(4),
  gradient(tape, node) {
    const [x, weight] = node.inputs;
    const [y, rstd] = node.outputs;
    const dx = normGradient(tape, node, y!, x!, weight!, rstd!);
    // What x got from elsewhere is already in dx.
    if (dx) tape.give(x!, dx);
  },
};

export const ADD_RMS_NORM: OpSpec = {
  name: 'add_rms_norm',
  signature: 'x: act[N,C], branch: act[N,C], weight: f32[C] -> sum: act[N,C], y: act[N,C], rstd: f32[N]',
  attrs: ['eps'],
  inPlace: [
    [0, 0],
    [0, 1],
  ],
  cost: elementwise(5),
  gradient(tape, node) {
    const [x, branch, weight] = node.inputs;
    const [sum, y, rstd] = node.outputs;
    const dsum = normGradient(tape, node, y!, sum!, weight!, rstd!) ?? tape.take(sum);
    if (!dsum) return;
    tape.give(x, dsum);
    tape.give(branch, dsum);
  },
};

/** Gradient of the normed tensor, what it got from elsewhere (a residual) folded in; null when y got none. */
function normGradient(
  tape: Tape,
  node: Node,
  y: Tensor,
  x: Tensor,
  weight: Tensor,
  rstd: Tensor,
): Tensor | null {
  const dy = tape.take(y);
  if (!dy) return null;
  const target = tape.parameterGradient(weight);
  if (!target && !tape.needs(x)) return null;
  const [dx] = tape.at(node).emit(RMS_NORM_BACKWARD, [dy, x, weight, rstd, tape.take(x)], {
    attrs: { accumulate: target?.accumulate ?? 0 },
    into: { dweight: target?.tensor ?? null },
  });
  return tape.needs(x) ? dx! : null;
}

export const RMS_NORM_BACKWARD: OpSpec = {
  name: 'rms_norm_backward',
  signature:
    'dy: act[N,C], x: act[N,C], weight: f32[C], rstd: f32[N], dresidual?: act[N,C] -> dx: act[N,C], dweight?: f32[C], scratch?: f32[*]',
  attrs: ['accumulate'],
  // In place of dresidual only: dy is still read when a row's dx is written.
  inPlace: [[0, 4]],
  modifies: whenAccumulating(1),
  scratch: (view, device) => partialSums(view, device),
  cost: elementwise(10),
};

/** dweight is summed in a fixed number of row groups, then over the groups, so that threads do not matter. */
const PARTIALS: Record<DeviceKind, number> = { cpu: 64, cuda: 64 };
function partialSums(view: OpView, device: DeviceKind): readonly number[] | null {
  return view.outputs[1] ? [PARTIALS[device] * view.inputs[2]!.shape[0]!] : null;
}

/** x act [N,C] → act [N,C]. */
export const rmsNorm =
  (weight: Tensor, eps: number): Wire =>
  (x, at) =>
    at.emitOne(RMS_NORM, [x, weight], { attrs: { eps } });
