/** The searches for block scales as native/core/weight_kernels.h defines them, one element at a time in fp32. */
import { decode, E2M1, E4M3, encode } from './number-formats.js';
import type { Quantised } from './nvfp4.js';

const { fround } = Math;

export type Search = 'amax' | 'four-over-six' | 'mse';

const largest = (x: Iterable<number>): number => {
  let amax = 0;
  for (const value of x) amax = Math.max(amax, Math.abs(value));
  return amax;
};

/** The global scale of matrices that share one: by the amax of all of them. */
export function sharedGlobalScale(matrices: readonly Float32Array[], search: Search): number {
  const amax = Math.max(...matrices.map(largest));
  const scale = fround(amax / ((search === 'amax' ? 448 : 256) * 6));
  return scale === 0 ? 1 : scale;
}

const rounded = (value: number): number => decode(E2M1, encode(E2M1, value));

function squaredError(block: Float32Array, bits: number, global: number): number {
  const scale = decode(E4M3, bits);
  const inverse = fround(1 / fround(scale * global));
  let sum = 0;
  for (const value of block) {
    const size = Math.abs(value);
    const quotient = fround(size * inverse);
    const q = rounded(quotient < 6 ? quotient : 6);
    const off = fround(size - fround(fround(q * scale) * global));
    sum = fround(sum + fround(off * off));
  }
  return sum;
}

function scaleBits(block: Float32Array, search: Search, global: number): number {
  const amax = largest(block);
  const mapped = (to: number): number => encode(E4M3, fround(fround(amax / to) / global));
  const six = mapped(6);
  if (search === 'amax') return six;
  if (search === 'four-over-six') {
    const four = mapped(4);
    return squaredError(block, four, global) < squaredError(block, six, global) ? four : six;
  }
  if (amax === 0) return 0;
  let best = { bits: 0, error: Infinity };
  for (let bits = six - 2; bits <= six + 6; bits++) {
    const candidate = Math.min(Math.max(bits, 1), 126);
    const error = squaredError(block, candidate, global);
    if (error < best.error) best = { bits: candidate, error };
  }
  return best.bits;
}

export function quantiseSearching(x: Float32Array, search: Search, global: number): Quantised {
  const qdata = new Uint8Array(x.length / 2);
  const scale = new Uint8Array(x.length / 16);
  for (let at = 0; at < scale.length; at++) {
    const block = x.subarray(at * 16, at * 16 + 16);
    scale[at] = scaleBits(block, search, global);
    const step = fround(decode(E4M3, scale[at]!) * global);
    block.forEach((value, i) => {
      const code = step === 0 ? 0 : encode(E2M1, fround(value / step));
      qdata[(at * 16 + i) >> 1]! |= i % 2 === 0 ? code : code << 4;
    });
  }
  return { qdata, scale, globalScale: global };
}
