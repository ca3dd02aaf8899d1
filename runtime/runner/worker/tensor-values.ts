/** Values of tensors in files, one after another: for comparing and summing up, not for computing. */
import type { FileType, NumericArray, TensorFiles } from '../../engine/engine.js';
import type { MatrixParts, PlacedEntry, TensorRow } from './tensor-rows.js';

const E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0, -0.5, -1, -1.5, -2, -3, -4, -6];
const BLOCK = 16;

export const E4M3: readonly number[] = Array.from({ length: 256 }, (_, bits) => {
  const exponent = (bits >> 3) & 15;
  const mantissa = (bits & 7) / 8;
  const size = exponent === 0 ? mantissa * 2 ** -6 : (1 + mantissa) * 2 ** (exponent - 7);
  return (bits & 127) === 127 ? NaN : bits > 127 ? -size : size;
});

const word = new Float32Array(1);
const bitsOfWord = new Uint32Array(word.buffer);

function half(bits: number): number {
  const exponent = (bits >> 10) & 31;
  const mantissa = bits & 1023;
  const sign = bits >> 15 === 1 ? -1 : 1;
  if (exponent === 31) return mantissa === 0 ? sign * Infinity : NaN;
  return sign * (exponent === 0 ? mantissa * 2 ** -24 : (1 + mantissa / 1024) * 2 ** (exponent - 15));
}

function bf16(bits: number): number {
  bitsOfWord[0] = bits << 16;
  return word[0]!;
}

function plainValue(type: FileType, data: NumericArray): (i: number) => number {
  if (type === 'f16') return (i) => half(Number(data[i]));
  if (type === 'bf16') return (i) => bf16(Number(data[i]));
  if (type === 'e4m3') return (i) => E4M3[Number(data[i])]!;
  return (i) => Number(data[i]);
}

const read = (files: TensorFiles, { index, entry }: PlacedEntry): Promise<NumericArray> =>
  files.readEntry(index, entry.name);

/** The multiplier of a matrix. */
export async function globalScaleOf(files: TensorFiles, parts: MatrixParts): Promise<number> {
  if (parts.global === null) return 1;
  const stored = Number((await read(files, parts.global))[0]);
  return parts.divisor ? Math.fround(1 / stored) : stored;
}

/** Element i of a tensor, row by row. */
export async function valuesOf(files: TensorFiles, row: TensorRow): Promise<(i: number) => number> {
  if (row.parts === null) return plainValue(row.plain!.entry.type, await read(files, row.plain!));
  const codes = (await read(files, row.parts.codes)) as Uint8Array;
  const scales = (await read(files, row.parts.scales)) as Uint8Array;
  const global = await globalScaleOf(files, row.parts);
  return (i) => {
    const code = (codes[i >> 1]! >> (i & 1 ? 4 : 0)) & 15;
    return Math.fround(E2M1[code]! * E4M3[scales[(i / BLOCK) | 0]!]! * global);
  };
}

export interface ScaleSummary {
  readonly matrices: number;
  readonly blocks: number;
  readonly zero_blocks: number;
  /** Blocks with a scale of exactly 2^-6, at which the predecessor clamped its scales. */
  readonly floor_blocks: number;
  readonly global_scale_min: number;
  readonly global_scale_max: number;
}

/** The scales of all NVFP4 matrices; null when there are none. */
export async function summariseScales(
  files: TensorFiles,
  rows: readonly TensorRow[],
): Promise<ScaleSummary | null> {
  let [matrices, blocks, zeros, floor] = [0, 0, 0, 0];
  let [least, most] = [Infinity, -Infinity];
  for (const { parts } of rows) {
    if (parts === null) continue;
    const scales = (await read(files, parts.scales)) as Uint8Array;
    for (const bits of scales) {
      if (bits === 0) zeros++;
      else if (bits === 8) floor++;
    }
    const global = await globalScaleOf(files, parts);
    [least, most] = [Math.min(least, global), Math.max(most, global)];
    matrices++;
    blocks += scales.length;
  }
  if (matrices === 0) return null;
  return {
    ...{ matrices, blocks, zero_blocks: zeros, floor_blocks: floor },
    ...{ global_scale_min: least, global_scale_max: most },
  };
}
