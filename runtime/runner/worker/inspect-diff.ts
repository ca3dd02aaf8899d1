/** What two sets of tensors differ in: names, types, shapes and values. */
import type { NumericArray, TensorFiles } from '../../engine/engine.js';
import { valuesOf } from './tensor-values.js';
import type { PlacedEntry, TensorRow } from './tensor-rows.js';

export interface TensorDifference {
  readonly name: string;
  readonly a: string;
  readonly b: string;
  /** ‖a − b‖ / ‖b‖ of the decoded values; null where shapes differ. */
  readonly rel_l2: number | null;
  readonly max_abs: number | null;
}

export interface Differences {
  /** Byte for byte, all parts. */
  readonly same: number;
  /** Other bytes, but the same values: another format or type. */
  readonly same_values: number;
  readonly only_a: readonly string[];
  readonly only_b: readonly string[];
  readonly different: readonly TensorDifference[];
}

const form = ({ type, shape }: TensorRow): string => `${type} [${shape.join(', ')}]`;

const bytesOf = (data: NumericArray): Buffer => Buffer.from(data.buffer, data.byteOffset, data.byteLength);

async function sameBytes(files: TensorFiles, a: TensorRow, b: TensorRow): Promise<boolean> {
  const partsOf = ({ plain, parts }: TensorRow): (PlacedEntry | null)[] =>
    parts === null ? [plain] : [parts.codes, parts.scales, parts.global];
  const [left, right] = [partsOf(a), partsOf(b)];
  if (a.type !== b.type || left.length !== right.length) return false;
  for (const [i, own] of left.entries()) {
    const other = right[i] ?? null;
    if (own === null || other === null) {
      if (own !== other) return false;
      continue;
    }
    if (own.entry.type !== other.entry.type || own.entry.bytes !== other.entry.bytes) return false;
    const [x, y] = [
      await files.readEntry(own.index, own.entry.name),
      await files.readEntry(other.index, other.entry.name),
    ];
    if (!bytesOf(x).equals(bytesOf(y))) return false;
  }
  return true;
}

async function compareValues(files: TensorFiles, a: TensorRow, b: TensorRow): Promise<TensorDifference> {
  const row = { name: a.name, a: form(a), b: form(b) };
  if (a.shape.join() !== b.shape.join()) return { ...row, rel_l2: null, max_abs: null };
  const [x, y] = [await valuesOf(files, a), await valuesOf(files, b)];
  const n = a.shape.reduce((product, dim) => product * dim, 1);
  let [off, norm, most] = [0, 0, 0];
  for (let i = 0; i < n; i++) {
    const value = y(i);
    const difference = Math.abs(x(i) - value);
    off += difference * difference;
    norm += value * value;
    if (!(difference <= most)) most = difference;
  }
  return { ...row, rel_l2: norm > 0 ? Math.sqrt(off / norm) : off > 0 ? Infinity : 0, max_abs: most };
}

export async function differences(
  files: TensorFiles,
  a: readonly TensorRow[],
  b: readonly TensorRow[],
): Promise<Differences> {
  const others = new Map(b.map((row) => [row.name, row]));
  const names = new Set(a.map(({ name }) => name));
  let [same, sameValues] = [0, 0];
  const different: TensorDifference[] = [];
  for (const row of a) {
    const other = others.get(row.name);
    if (other === undefined) continue;
    if (await sameBytes(files, row, other)) {
      same++;
      continue;
    }
    const found = await compareValues(files, row, other);
    if (found.max_abs === 0) sameValues++;
    else different.push(found);
  }
  return {
    same,
    same_values: sameValues,
    only_a: [...names].filter((name) => !others.has(name)),
    only_b: [...others.keys()].filter((name) => !names.has(name)),
    different,
  };
}
