/** Sampling on the device and the counters of a decode loop. */
import { elements, elementwise, payloadBytes } from '../cost.js';
import type { Recorder } from '../recorder.js';
import type { DeviceKind, OpSpec, OpView, Tensor } from '../types.js';

export const SAMPLE: OpSpec = {
  name: 'sample',
  signature:
    'logits: f32[B,V], sampling: f32[B,8], rng: i32[B,2], past: i32[B] -> seen: u8[B,V], ids: i32[B], scratch?: f32[*]',
  attrs: ['greedy'],
  modifies: () => [0],
  scratch: (view, device) => sampleScratch(view, device),
  cost: (view) => ({
    flops: 10 * elements(view.inputs[0]),
    bytes: payloadBytes(view.inputs[0]) + payloadBytes(view.outputs[0]),
  }),
};

function sampleScratch(_view: OpView, device: DeviceKind): readonly number[] | null {
  switch (device) {
    case 'cpu':
    case 'cuda':
      return null;
  }
}

export const INCREMENT: OpSpec = {
  name: 'increment',
  signature: '-> x: i32[*]',
  attrs: ['by', 'max'],
  modifies: () => [0],
  cost: elementwise(1, [0]),
};

export interface SampleOperands {
  readonly logits: Tensor;
  readonly sampling: Tensor;
  readonly rng: Tensor;
  readonly past: Tensor;
  readonly seen: Tensor;
  readonly ids: Tensor;
}

/** greedy: as with temperature 0, whatever `sampling` says of it. */
export function sample(operands: SampleOperands, greedy: boolean, at: Recorder): void {
  const { logits, sampling, rng, past, seen, ids } = operands;
  at.emit(SAMPLE, [logits, sampling, rng, past], { attrs: { greedy: greedy ? 1 : 0 }, into: { seen, ids } });
}

/** x[i] = min(x[i] + by, max), in place. */
export function increment(x: Tensor, by: number, max: number, at: Recorder): void {
  at.emit(INCREMENT, [], { attrs: { by, max }, into: { x } });
}
