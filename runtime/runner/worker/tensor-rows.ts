/** One row a tensor, whatever the format: the parts of an NVFP4 matrix are put together. */
import type { FileEntry, FileIndex } from '../../engine/engine.js';

export interface PlacedEntry {
  readonly index: FileIndex;
  readonly entry: FileEntry;
}

export interface TensorRow {
  readonly name: string;
  readonly type: string;
  /** Of the matrix, not of its codes. */
  readonly shape: readonly number[];
  readonly bytes: number;
  readonly offset: number;
  readonly parts: MatrixParts | null;
  readonly plain: PlacedEntry | null;
}

export interface MatrixParts {
  readonly codes: PlacedEntry;
  readonly scales: PlacedEntry;
  readonly global: PlacedEntry | null;
  /** The global scale is stored as its reciprocal. */
  readonly divisor: boolean;
}

/** How formats call the parts of `X.weight`; a name with codes is a matrix if its scales are there too. */
const SPELLINGS = [
  { kind: '', codes: '.qdata', scales: '.scale', global: '.global_scale', owner: '', divisor: false },
  {
    kind: 'ModelOpt',
    codes: '.weight',
    scales: '.weight_scale',
    global: '.weight_scale_2',
    owner: '.weight',
    divisor: false,
  },
  {
    kind: 'compressed-tensors',
    codes: '.weight_packed',
    scales: '.weight_scale',
    global: '.weight_global_scale',
    owner: '.weight',
    divisor: true,
  },
] as const;

const doubled = (shape: readonly number[]): number[] =>
  shape.map((n, i) => (i === shape.length - 1 ? n * 2 : n));

function matrixAt(entries: ReadonlyMap<string, PlacedEntry>, name: string): TensorRow | null {
  for (const { kind, codes, scales, global, owner, divisor } of SPELLINGS) {
    if (!name.endsWith(codes)) continue;
    const base = name.slice(0, -codes.length);
    const parts = [name, base + scales, base + global].map((part) => entries.get(part));
    const [own, scale, whole] = parts;
    if (own === undefined || scale === undefined || !['u8', 'e2m1x2'].includes(own.entry.type)) continue;
    if (kind === 'ModelOpt' && whole === undefined) continue;
    const present = [own, scale, ...(whole === undefined ? [] : [whole])];
    return {
      name: base + owner,
      type: `nvfp4, ${kind === '' ? (whole === undefined ? 'one level' : 'two levels') : kind}`,
      shape: doubled(own.entry.shape),
      bytes: present.reduce((sum, { entry }) => sum + entry.bytes, 0),
      offset: Math.min(...present.map(({ entry }) => entry.offset)),
      parts: { codes: own, scales: scale, global: whole ?? null, divisor },
      plain: null,
    };
  }
  return null;
}

export function tensorRows(entries: ReadonlyMap<string, PlacedEntry>): TensorRow[] {
  const matrices = new Map<string, TensorRow>();
  const inside = new Set<string>();
  for (const name of entries.keys()) {
    const row = matrixAt(entries, name);
    if (row === null) continue;
    matrices.set(name, row);
    const { codes, scales, global } = row.parts!;
    for (const part of [codes, scales, global]) if (part !== null) inside.add(part.entry.name);
  }
  return [...entries].flatMap(([name, placed]): TensorRow[] => {
    const matrix = matrices.get(name);
    if (matrix !== undefined) return [matrix];
    if (inside.has(name)) return [];
    const { type, shape, bytes, offset } = placed.entry;
    return [{ name, type, shape, bytes, offset, parts: null, plain: placed }];
  });
}

export const placed = (indices: readonly FileIndex[]): Map<string, PlacedEntry> =>
  new Map(
    indices.flatMap((index) =>
      index.entries.map((entry): [string, PlacedEntry] => [entry.name, { index, entry }]),
    ),
  );
