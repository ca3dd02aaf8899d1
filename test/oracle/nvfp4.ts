/** NVFP4 as formats.md §2 describes it, one element at a time, in fp32 arithmetic where the text says fp32. */
import { decode, E2M1, E4M3, encode } from './number-formats.js';

const { fround } = Math;

export interface Quantised {
  readonly qdata: Uint8Array;
  readonly scale: Uint8Array;
  readonly globalScale: number;
}

/** The fp32 global scale of a tensor whose largest magnitude is amax. */
export function globalScale(amax: number): number {
  const scale = fround(amax / 2688);
  return scale === 0 ? 1 : scale;
}

/** x: fp32 values, whole blocks of 16. `global` 1 is single-level. */
export function quantise(x: ArrayLike<number>, global: number): Quantised {
  const qdata = new Uint8Array(x.length / 2);
  const scale = new Uint8Array(x.length / 16);
  for (let block = 0; block < scale.length; block++) {
    let amax = 0;
    for (let i = 0; i < 16; i++) amax = Math.max(amax, Math.abs(x[block * 16 + i]!));
    scale[block] = encode(E4M3, fround(fround(amax / 6) / global));
    const step = fround(decode(E4M3, scale[block]!) * global);
    for (let i = 0; i < 16; i++) {
      const at = block * 16 + i;
      const code = step === 0 ? 0 : encode(E2M1, fround(x[at]! / step));
      qdata[at >> 1]! |= at % 2 === 0 ? code : code << 4;
    }
  }
  return { qdata, scale, globalScale: global };
}

export function dequantise({ qdata, scale, globalScale }: Quantised): Float64Array {
  const values = new Float64Array(qdata.length * 2);
  for (let i = 0; i < values.length; i++) {
    const byte = qdata[i >> 1]!;
    const code = i % 2 === 0 ? byte & 15 : byte >> 4;
    values[i] = fround(decode(E2M1, code) * decode(E4M3, scale[i >> 4]!) * globalScale);
  }
  return values;
}
