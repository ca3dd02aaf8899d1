/** What a `.dat` is made of: every parameter of a source model quantised, taken over, converted or left as it is. */
import { Q4Error } from '../errors.js';
import type { FileType, ScaleSearch, TranscodeItem, ValueSource } from '../engine/types.js';
import { matches } from '../graph/patterns.js';
import type { ScaleLevel } from '../models/model.js';
import { listParameters, type Parameter } from '../models/parameters.js';
import { BLOCK } from '../program.js';
import type { SourceModel, SourceTensor } from './source-model.js';

export interface ImportOptions {
  readonly scales: ScaleSearch;
  readonly globalScale: ScaleLevel;
  /** One global scale for q/k/v and one for gate/up. */
  readonly sharedGlobalScale: boolean;
  /** Name patterns of the matrices that become NVFP4; only projections and a separate head ever do. */
  readonly quantize: readonly string[];
  readonly head: 'auto' | 'nvfp4' | 'bf16' | 'tied';
  /** Element type of what stays plain. */
  readonly dtype: 'keep' | FileType;
  /** Decode NVFP4 sources and quantise them anew, instead of taking codes and scales over. */
  readonly requantize: boolean;
}

export interface ImportItems {
  readonly items: readonly TranscodeItem[];
  /** The `.dat` holds no head: the embedding serves. */
  readonly tied: boolean;
  /** Parameters by what became of them. */
  readonly quantised: readonly string[];
  readonly takenOver: readonly string[];
  readonly plain: readonly string[];
}

const HEAD = 'lm_head.weight';
const EMBEDDING = 'model.embed_tokens.weight';

/** The tensors of the `.dat`: the source's, with the head that was asked for. */
function withHead(
  model: SourceModel,
  head: ImportOptions['head'],
): { tensors: SourceTensor[]; tied: boolean } {
  const { config, tensors } = model;
  const separate = !config.tieWordEmbeddings;
  if (head === 'tied') {
    if (separate && !model.configTies)
      throw new Q4Error('Q4507', 'lm_head: tied, but the config does not tie the head to the embedding', {
        expected: 'tie_word_embeddings: true',
        found: 'tie_word_embeddings: false and a head of its own',
        hint: 'set lm_head: auto, nvfp4 or bf16',
        at: ['lm_head'],
      });
    return { tensors: tensors.filter(({ parameter }) => parameter.name !== HEAD), tied: true };
  }
  if (separate || head === 'auto') return { tensors: [...tensors], tied: !separate };
  // A head of its own is made from the embedding that it was tied to.
  const parameter = listParameters({ ...config, tieWordEmbeddings: false }).find(
    ({ name }) => name === HEAD,
  )!;
  const embedding = tensors.find(({ parameter }) => parameter.name === EMBEDDING)!;
  return { tensors: [...tensors, { ...embedding, parameter }], tied: false };
}

/** Members of a group side by side, where the first of them stands. */
function grouped(tensors: readonly SourceTensor[]): SourceTensor[] {
  const groups = new Map<string, SourceTensor[]>();
  for (const tensor of tensors) {
    const { group, name } = tensor.parameter;
    const key = group ?? name;
    groups.set(key, [...(groups.get(key) ?? []), tensor]);
  }
  return [...groups.values()].flat();
}

function checkPatterns(patterns: readonly string[], matrices: readonly Parameter[]): void {
  const names = matrices.map(({ name }) => name);
  const idle = patterns.filter((pattern) => !names.some((name) => matches(pattern, name)));
  // Without a head of its own nothing matches lm_head, which is no mistake.
  const wrong = idle.filter((pattern) => !matches(pattern, HEAD));
  if (wrong.length > 0)
    throw new Q4Error('Q4507', `quantize matches no matrix: ${wrong.join(', ')}`, {
      expected: `patterns of names such as ${names[0] ?? 'model.layers.0.mlp.up_proj.weight'}`,
      found: wrong.join(', '),
      at: ['quantize'],
    });
}

/** An NVFP4 matrix as it stands; a global scale of 1 needs no entry. */
function takeOver(name: string, shape: readonly number[], value: ValueSource): TranscodeItem[] {
  const { codes, scales, globalScale } = value as Extract<ValueSource, { codes: unknown }>;
  const [out, inputs] = shape as [number, number];
  const items: TranscodeItem[] = [
    {
      kind: 'copy',
      name: `${name}.qdata`,
      shape: [out, inputs / 2],
      type: 'u8',
      source: codes,
      part: 'qdata',
    },
    {
      kind: 'copy',
      name: `${name}.scale`,
      shape: [out, inputs / BLOCK],
      type: 'e4m3',
      source: scales,
      part: 'scale',
    },
  ];
  if (globalScale !== 1)
    items.push({
      kind: 'data',
      name: `${name}.global_scale`,
      shape: [1],
      type: 'f32',
      data: Float32Array.of(globalScale),
    });
  return items;
}

export function importItems(model: SourceModel, options: ImportOptions): ImportItems {
  const { tensors, tied } = withHead(model, options.head);
  const isMatrix = ({ kind }: Parameter): boolean => kind === 'projection' || kind === 'head';
  checkPatterns(
    options.quantize,
    tensors.map(({ parameter }) => parameter).filter((parameter) => isMatrix(parameter)),
  );
  const wanted = (parameter: Parameter): boolean =>
    isMatrix(parameter) &&
    !(parameter.name === HEAD && options.head === 'bf16') &&
    ((parameter.name === HEAD && options.head === 'nvfp4') ||
      options.quantize.some((pattern) => matches(pattern, parameter.name)));
  const items: TranscodeItem[] = [];
  const quantised: string[] = [];
  const takenOver: string[] = [];
  const plain: string[] = [];
  for (const { parameter, value, type } of grouped(tensors)) {
    const { name, shape } = parameter;
    if (wanted(parameter)) {
      const fits = type === null && (options.globalScale === 'two_level' || onlyBlocks(value));
      if (fits && !options.requantize) {
        items.push(...takeOver(name, shape, value));
        takenOver.push(name);
        continue;
      }
      const group = options.sharedGlobalScale ? (parameter.group ?? name) : name;
      const twoLevel = options.globalScale === 'two_level';
      items.push({ kind: 'quantise', name, shape, source: value, scales: options.scales, twoLevel, group });
      quantised.push(name);
      continue;
    }
    const kept = options.dtype === 'keep' ? (type ?? 'bf16') : options.dtype;
    const target = name === HEAD && options.head === 'bf16' ? 'bf16' : kept;
    items.push({ kind: 'convert', name, shape, type: target, source: value });
    plain.push(name);
  }
  return { items, tied, quantised, takenOver, plain };
}

/** Its values are codes times block scales alone. */
const onlyBlocks = (value: ValueSource): boolean => 'codes' in value && value.globalScale === 1;
