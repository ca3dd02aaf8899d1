/** Constants, random numbers and conversions. */
import { elementwise } from '../cost.js';
import type { Recorder } from '../recorder.js';
import type { OpSpec, Tensor } from '../types.js';

export const FILL: OpSpec = {
  name: 'fill',
  signature: '-> y: f32|bf16|i32[*]',
  attrs: ['value'],
  cost: elementwise(0),
};

export const CAST: OpSpec = {
  name: 'cast',
  signature: 'x: f32|bf16|f16[*] -> y: f32|bf16|f16[*]',
  cost: elementwise(0),
};

export const RANDOM_NORMAL: OpSpec = {
  name: 'random_normal',
  signature: '-> y: f32[*]',
  attrs: ['seed_lo', 'seed_hi', 'stream', 'std'],
  cost: elementwise(40),
};

export function fill(value: number, y: Tensor, at: Recorder): void {
  at.emit(FILL, [], { attrs: { value }, into: { y } });
}

export function cast(x: Tensor, y: Tensor, at: Recorder): void {
  at.emit(CAST, [x], { into: { y } });
}

/** y = std·normal, keyed by seed (a whole number below 2^53), stream and element. */
export function randomNormal(seed: number, stream: number, std: number, y: Tensor, at: Recorder): void {
  const attrs = { seed_lo: seed % 2 ** 32, seed_hi: Math.floor(seed / 2 ** 32), stream, std };
  at.emit(RANDOM_NORMAL, [], { attrs, into: { y } });
}
