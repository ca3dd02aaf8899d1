/** Gradient norm, clipping and AdamW. */
import { elementwise, elements, traffic } from '../cost.js';
import type { Recorder } from '../recorder.js';
import type { OpSpec, Tensor } from '../types.js';

export const SUM_SQUARES: OpSpec = {
  name: 'sum_squares',
  signature: 'x: f32|bf16[*] -> partials: f32[P]',
  attrs: ['slot'],
  check: (view) =>
    view.attrs['slot']! < view.outputs[0]!.shape[0]! ? null : 'the slot lies outside its vector',
  // One slot of many: the others stay.
  modifies: () => [0],
  cost: (view) => ({ flops: 2 * elements(view.inputs[0]), bytes: traffic({ ...view, outputs: [] }) + 4 }),
};

export const GRAD_STATS: OpSpec = {
  name: 'grad_stats',
  signature: 'partials: f32[P], loss: f32[1] -> stats: f32[4]',
  attrs: ['max_norm'],
  check: (view) => (view.attrs['max_norm']! >= 0 ? null : 'max_norm must not be negative'),
  cost: elementwise(1),
};

export const ADAMW: OpSpec = {
  name: 'adamw',
  signature:
    'grad: f32|bf16[*], stats: f32[4], hyper: f32[8], rng: i32[4] -> master: f32|bf16[*], m: f32[*], v: f32[*]',
  attrs: ['decay', 'stream'],
  modifies: () => [0, 1, 2],
  cost: elementwise(16, [0, 1, 2]),
};

/** What `fuseAdamwAmax` makes of an update and the amax that follows it. */
export const ADAMW_AMAX: OpSpec = {
  name: 'adamw_amax',
  signature:
    'grad: f32|bf16[*], stats: f32[4], hyper: f32[8], rng: i32[4] -> master: f32|bf16[*], m: f32[*], v: f32[*], amax: f32[P]',
  attrs: ['decay', 'stream', 'slot'],
  check: (view) =>
    view.attrs['slot']! < view.outputs[3]!.shape[0]! ? null : 'the slot lies outside its vector',
  modifies: () => [0, 1, 2, 3],
  cost: (view) => {
    const { flops, bytes } = elementwise(17, [0, 1, 2])({ ...view, outputs: view.outputs.slice(0, 3) });
    return { flops, bytes: bytes + 4 };
  },
};

/** partials[slot] = Σ x². */
export function sumSquares(x: Tensor, slot: number, partials: Tensor, at: Recorder): void {
  at.emit(SUM_SQUARES, [x], { attrs: { slot }, into: { partials } });
}

/** stats f32 [4] = { norm, clip coefficient, applied, loss }. */
export function gradStats(
  partials: Tensor,
  loss: Tensor,
  maxNorm: number,
  stats: Tensor,
  at: Recorder,
): void {
  at.emit(GRAD_STATS, [partials, loss], { attrs: { max_norm: maxNorm }, into: { stats } });
}

export interface AdamwOperands {
  readonly grad: Tensor;
  readonly stats: Tensor;
  readonly hyper: Tensor;
  readonly rng: Tensor;
  readonly master: Tensor;
  readonly m: Tensor;
  readonly v: Tensor;
}

/** One tensor's update, in place; `stream` keys the stochastic rounding of bf16 masters. */
export function adamw(operands: AdamwOperands, decay: boolean, stream: number, at: Recorder): void {
  const { grad, stats, hyper, rng, master, m, v } = operands;
  at.emit(ADAMW, [grad, stats, hyper, rng], {
    attrs: { decay: decay ? 1 : 0, stream },
    into: { master, m, v },
  });
}
