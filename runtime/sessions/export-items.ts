/** What a safetensors checkpoint is made of: plain, ModelOpt NVFP4 or compressed-tensors NVFP4. */
import { Q4Error } from '../errors.js';
import type { EntryOf, FileType, NumericArray, TranscodeItem, ValueSource } from '../engine/types.js';
import { BLOCK, elementCount } from '../program.js';
import type { QuantisationFacts } from './checkpoint-config.js';
import { exactDivisor, moduleOf, partNames, reciprocal, type QuantisedFormat } from './checkpoint-names.js';
import type { SourceModel, SourceTensor } from './source-model.js';

export interface ExportOptions {
  readonly format: 'safetensors' | QuantisedFormat;
  /** Of plain tensors. auto: one for all (bf16) in a plain checkpoint, otherwise as each stands. */
  readonly dtype: 'auto' | 'f16' | 'bf16' | 'f32';
  /** Keep an NVFP4 head: engines for dense Qwen3 expect a plain one. */
  readonly quantisedHead: boolean;
  /** Use scales of activations where the source has them. */
  readonly activations: boolean;
}

/** Tensors of the source that came out other than they were, or not at all. */
export type Change = { readonly name: string; readonly what: string };

export interface ExportItems {
  readonly items: readonly TranscodeItem[];
  readonly changes: readonly Change[];
  readonly facts: QuantisationFacts;
  /** Element type of the plain tensors, for the config. */
  readonly dtype: FileType;
}

/** Small tensors of the source's companions: name → values. */
export interface Extra {
  readonly from: EntryOf;
  readonly data: NumericArray;
}
export type Extras = ReadonlyMap<string, Extra>;

const HEAD = 'lm_head.weight';

type Matrix = Extract<ValueSource, { codes: unknown }>;

const scalar = (name: string, value: number, shape: readonly number[]): TranscodeItem => ({
  kind: 'data',
  name,
  shape,
  type: 'f32',
  data: Float32Array.of(value),
});

const first = (extra: Extra | undefined): number | null => (extra ? Number(extra.data[0]) : null);

/** The divisor to write for a multiplier: the source's own, or the one that reads back as the same. */
function divisorOf(multiplier: number, kept: number | null): { divisor: number; exact: boolean } {
  if (kept !== null && reciprocal(kept) === multiplier) return { divisor: kept, exact: true };
  const exact = exactDivisor(multiplier);
  return { divisor: exact ?? reciprocal(multiplier), exact: exact !== null };
}

/** The scale of a module's activations in this direction, from either format's tensor. */
function activationScale(
  extras: Extras,
  parameter: string,
  format: QuantisedFormat,
): { value: number; exact: boolean } | null {
  const own = first(extras.get(partNames(format, parameter).activation));
  if (own !== null) return { value: own, exact: true };
  const other = format === 'modelopt' ? 'compressed-tensors' : 'modelopt';
  const turned = first(extras.get(partNames(other, parameter).activation));
  if (turned === null) return null;
  const value = reciprocal(turned);
  return { value, exact: reciprocal(value) === turned };
}

function matrixItems(
  { parameter, value }: SourceTensor,
  format: QuantisedFormat,
  extras: Extras,
  activations: boolean,
  changes: Change[],
): TranscodeItem[] {
  const { codes, scales, globalScale } = value as Matrix;
  const [out, inputs] = parameter.shape as [number, number];
  const names = partNames(format, parameter.name);
  if (globalScale === 0)
    throw new Q4Error(
      'Q4507',
      `the global scale of '${parameter.name}' is 0, which serving engines do not read`,
      {
        file: codes.index.path,
        entry: parameter.name,
      },
    );
  const items: TranscodeItem[] = [
    { kind: 'copy', name: names.codes, shape: [out, inputs / 2], type: 'u8', source: codes, part: 'qdata' },
    {
      kind: 'copy',
      name: names.scales,
      shape: [out, inputs / BLOCK],
      type: 'e4m3',
      source: scales,
      part: 'scale',
    },
  ];
  if (format === 'modelopt') items.push(scalar(names.global, globalScale, []));
  else {
    const { divisor, exact } = divisorOf(globalScale, first(extras.get(names.global)));
    items.push(scalar(names.global, divisor, [1]));
    if (!exact)
      changes.push({
        name: parameter.name,
        what: `its global scale ${globalScale} is the reciprocal of no fp32 number; ${reciprocal(divisor)} stands for it`,
      });
  }
  const activation = activations ? activationScale(extras, parameter.name, format) : null;
  if (activation) items.push(scalar(names.activation, activation.value, format === 'modelopt' ? [] : [1]));
  return items;
}

/** Scales of the FP8 cache belong to ModelOpt checkpoints. */
function cacheItems(extras: Extras, format: ExportOptions['format'], changes: Change[]): TranscodeItem[] {
  const items: TranscodeItem[] = [];
  for (const [name, { from, data }] of extras) {
    if (!/\.[kv]_scale$/.test(name)) continue;
    if (format === 'modelopt')
      items.push({ kind: 'data', name, shape: from.entry.shape, type: from.entry.type, data });
    else changes.push({ name, what: 'left out: only ModelOpt checkpoints hold it' });
  }
  return items;
}

export function exportItems(model: SourceModel, extras: Extras, options: ExportOptions): ExportItems {
  const { format } = options;
  const changes: Change[] = [];
  const plainDtype = (type: FileType | null): FileType => {
    if (options.dtype !== 'auto') return options.dtype;
    return format === 'safetensors' ? 'bf16' : (type ?? 'bf16');
  };
  const keeps = ({ parameter, type }: SourceTensor): boolean =>
    format !== 'safetensors' && type === null && (parameter.name !== HEAD || options.quantisedHead);
  const matrices = model.tensors.filter(keeps);
  if (format !== 'safetensors' && matrices.length === 0)
    throw new Q4Error(
      'Q4507',
      `the weights hold no NVFP4 matrix, so they cannot become a ${format} checkpoint`,
      {
        hint: 'quantise them first with import-weights, or set format: safetensors',
        at: ['format'],
      },
    );
  const activations =
    format !== 'safetensors' &&
    options.activations &&
    matrices.every(({ parameter }) => activationScale(extras, parameter.name, format) !== null);
  const items: TranscodeItem[] = [];
  const plainModules: string[] = [];
  for (const tensor of model.tensors) {
    const { parameter, value, type } = tensor;
    const { name, shape, kind } = parameter;
    if (format !== 'safetensors' && keeps(tensor)) {
      items.push(...matrixItems(tensor, format, extras, activations, changes));
      continue;
    }
    const target = plainDtype(type);
    items.push({ kind: 'convert', name, shape, type: target, source: value });
    if (kind === 'head' || kind === 'projection') plainModules.push(moduleOf(name));
    if (type === null && format !== 'safetensors')
      changes.push({
        name,
        what: `decoded to ${target}: engines expect a plain head; lm_head: nvfp4 keeps it`,
      });
    else if (type !== null && type !== target) changes.push({ name, what: `${type} became ${target}` });
  }
  if (model.config.tieWordEmbeddings) plainModules.push(moduleOf(HEAD));
  const cache = cacheItems(extras, format, changes);
  items.push(...cache);
  if (format !== 'safetensors' && !activations)
    for (const name of extras.keys())
      if (/\.input_(?:global_)?scale$/.test(name))
        changes.push({ name, what: 'left out: the export quantises weights only' });
  const embedding = model.tensors.find(({ parameter }) => parameter.kind === 'embedding')!;
  return {
    items,
    changes,
    facts: { activations, fp8Cache: cache.length > 0, plainModules },
    dtype: plainDtype(embedding.type),
  };
}

const SIZES: Partial<Record<FileType, number>> = { f16: 2, bf16: 2, f32: 4 };
export const itemBytes = (item: TranscodeItem): number =>
  item.kind === 'quantise' ? 0 : elementCount(item.shape) * (SIZES[item.type] ?? 1);

export interface Shard {
  readonly file: string;
  readonly items: readonly TranscodeItem[];
}

/** Fills shards in order, each up to `most` bytes; a tensor larger than that gets one of its own. */
export function shardItems(items: readonly TranscodeItem[], most: number): readonly Shard[] {
  const shards: TranscodeItem[][] = [[]];
  let filled = 0;
  for (const item of items) {
    const bytes = itemBytes(item);
    if (filled > 0 && filled + bytes > most) {
      shards.push([]);
      filled = 0;
    }
    shards.at(-1)!.push(item);
    filled += bytes;
  }
  if (shards.length === 1) return [{ file: 'model.safetensors', items }];
  const number = (n: number): string => String(n).padStart(5, '0');
  return shards.map((own, i) => ({
    file: `model-${number(i + 1)}-of-${number(shards.length)}.safetensors`,
    items: own,
  }));
}

/** model.safetensors.index.json */
export function shardIndex(shards: readonly Shard[]): string {
  const map = shards.flatMap(({ file, items }) => items.map(({ name }): [string, string] => [name, file]));
  map.sort(([a], [b]) => (a < b ? -1 : 1));
  const total = shards.flatMap(({ items }) => items).reduce((sum, item) => sum + itemBytes(item), 0);
  return `${JSON.stringify({ metadata: { total_size: total }, weight_map: Object.fromEntries(map) }, null, 2)}\n`;
}
