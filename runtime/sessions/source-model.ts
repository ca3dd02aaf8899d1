/** A model in files, of any format that import and export take: every parameter with the place of its values. */
import { Q4Error, Q4Errors, type ErrorDetails } from '../errors.js';
import type { EntryOf, FileEntry, FileIndex, FileType, TensorFiles, ValueSource } from '../engine/types.js';
import { parseQwen3Config, type Qwen3Config } from '../models/config.js';
import { listParameters, type Parameter } from '../models/parameters.js';
import { BLOCK } from '../program.js';
import { parseJson } from '../text/tokenizer-file.js';
import { quantisedFormat } from './checkpoint-config.js';
import { isExtra, partNames, reciprocal, type QuantisedFormat } from './checkpoint-names.js';
import { readTensors, type ReadableFiles } from './source-files.js';
import { matchWeights } from './weight-file.js';

export interface SourceTensor {
  readonly parameter: Parameter;
  readonly value: ValueSource;
  /** Of plain values; null for an NVFP4 matrix. */
  readonly type: FileType | null;
  /** An NVFP4 matrix whose file has a global scale. */
  readonly twoLevel: boolean;
}

export interface SourceModel {
  readonly format: 'dat' | 'safetensors' | QuantisedFormat;
  /** `tieWordEmbeddings`: the source has no head of its own. */
  readonly config: Qwen3Config;
  readonly configText: string;
  /** What config.json says of tying, whatever the file holds. */
  readonly configTies: boolean;
  /** Every parameter, in the order of the wiring. */
  readonly tensors: readonly SourceTensor[];
  /** Scales of activations and the cache, and divisors: what a `.dat` has no place for. */
  readonly extras: readonly EntryOf[];
  /** Entries that are not used, e.g. a head that the config ties. */
  readonly leftOut: readonly string[];
}

const PLAIN: readonly FileType[] = ['f32', 'f16', 'bf16'];

/** The global scale of an NVFP4 matrix; formats say in which direction it is stored. */
async function readGlobal(tensors: TensorFiles, from: EntryOf, divisor: boolean): Promise<number> {
  const found = Number((await tensors.readEntry(from.index, from.entry.name))[0]);
  const place = { file: from.index.path, entry: from.entry.name, offset: from.entry.offset };
  if (!Number.isFinite(found) || found <= 0)
    throw new Q4Error('Q4219', 'a global scale is not a number that may stand there', {
      ...place,
      expected: 'a finite number above 0',
      found: String(found),
      hint: 'the file is damaged',
    });
  // 1 is its own reciprocal. A multiplier above 1 would mean weights beyond 448·6, a divisor below 1 the same.
  if (divisor ? found < 1 : found > 1)
    throw new Q4Error('Q4286', `the global scale looks like its reciprocal`, {
      ...place,
      expected: divisor ? 'a divisor, 1 or more (2688 / amax)' : 'a multiplier, 1 or less (amax / 2688)',
      found: String(found),
      hint: divisor
        ? 'is this a ModelOpt checkpoint? Its tensors are called weight, weight_scale and weight_scale_2'
        : 'is this a compressed-tensors checkpoint? Its tensors are called weight_packed and weight_global_scale',
    });
  return divisor ? reciprocal(found) : found;
}

/** A tensor whose global scale is still in its file. */
interface Found {
  readonly parameter: Parameter;
  readonly plain?: EntryOf;
  readonly codes?: EntryOf;
  readonly scales?: EntryOf;
  readonly global?: { readonly from: EntryOf; readonly divisor: boolean };
}

async function complete(tensors: TensorFiles, found: Found): Promise<SourceTensor> {
  const { parameter, plain, codes, scales, global } = found;
  if (plain) return { parameter, value: { plain }, type: plain.entry.type, twoLevel: false };
  const globalScale = global ? await readGlobal(tensors, global.from, global.divisor) : 1;
  const value = { codes: codes!, scales: scales!, globalScale };
  return { parameter, value, type: null, twoLevel: global !== undefined };
}

class Matcher {
  readonly problems: Q4Error[] = [];
  readonly used = new Set<string>();

  constructor(
    private readonly entries: ReadonlyMap<string, EntryOf>,
    private readonly file: string,
  ) {}

  problem(code: 'Q4281' | 'Q4282' | 'Q4283', message: string, details: ErrorDetails): void {
    this.problems.push(new Q4Error(code, message, { file: this.file, ...details }));
  }

  has(name: string): boolean {
    return this.entries.has(name);
  }

  /** The entry, if there is one, checked. */
  take(
    name: string,
    types: readonly FileType[],
    ...shapes: readonly (readonly number[])[]
  ): EntryOf | undefined {
    const found = this.entries.get(name);
    if (!found) return undefined;
    this.used.add(name);
    const { entry, index } = found;
    const fits = shapes.some((shape) => shape.join() === entry.shape.join());
    if (!fits || !types.includes(entry.type))
      this.problem('Q4283', `tensor '${name}' does not match the config`, {
        file: index.path,
        entry: name,
        offset: entry.offset,
        expected: `${types.join(' or ')} [${shapes[0]!.join(', ')}]`,
        found: `${entry.type} [${entry.shape.join(', ')}]`,
      });
    return found;
  }

  #quantised(parameter: Parameter, format: QuantisedFormat): Found | undefined {
    const [out, inputs] = parameter.shape as [number, number];
    const names = partNames(format, parameter.name);
    const codes = this.take(names.codes, ['u8'], [out, inputs / 2]);
    const scales = this.take(names.scales, ['e4m3'], [out, inputs / BLOCK]);
    const global = this.take(names.global, ['f32'], format === 'modelopt' ? [] : [1], [], [1]);
    const parts = { codes, scales, global };
    if (!codes || !scales || !global) {
      const missing = (['codes', 'scales', 'global'] as const).filter((part) => !parts[part]);
      this.problem('Q4281', `an NVFP4 matrix lacks ${missing.map((part) => names[part]).join(' and ')}`, {
        entry: parameter.name,
      });
      return undefined;
    }
    const divisor = format === 'compressed-tensors';
    return { parameter, codes, scales, global: { from: global, divisor } };
  }

  match(parameter: Parameter): Found | undefined {
    const { name, shape, kind } = parameter;
    const modelOpt = partNames('modelopt', name);
    const packed = partNames('compressed-tensors', name);
    const matrix = kind === 'projection' || kind === 'head';
    if (matrix && this.has(packed.codes)) return this.#quantised(parameter, 'compressed-tensors');
    if (matrix && this.has(modelOpt.global)) return this.#quantised(parameter, 'modelopt');
    const plain = this.take(name, PLAIN, shape);
    return plain && { parameter, plain };
  }

  finish(): void {
    if (this.problems.length === 1) throw this.problems[0];
    if (this.problems.length > 1) throw new Q4Errors(this.problems);
  }
}

const some = (names: readonly string[]): string =>
  names.slice(0, 12).join(', ') + (names.length > 12 ? ` and ${names.length - 12} more` : '');

function matchTensors(
  entries: ReadonlyMap<string, EntryOf>,
  config: Qwen3Config,
  file: string,
  strict: boolean,
): { found: Found[]; leftOut: string[]; extras: EntryOf[]; config: Qwen3Config } {
  const matcher = new Matcher(entries, file);
  const missing: string[] = [];
  const found = listParameters(config).flatMap((parameter): Found[] => {
    const before = matcher.problems.length;
    const match = matcher.match(parameter);
    if (!match && matcher.problems.length === before) missing.push(parameter.name);
    return match ? [match] : [];
  });
  if (missing.length > 0)
    matcher.problem(
      'Q4281',
      `the checkpoint lacks ${missing.length} of the model's parameters: ${some(missing)}`,
      {
        expected: `${listParameters(config).length} parameters, as the config says`,
        found: `${entries.size} tensors`,
        hint: 'is this the config.json of this checkpoint?',
      },
    );
  const rest = [...entries].filter(([name]) => !matcher.used.has(name));
  const extras = rest.filter(([name]) => isExtra(name)).map(([, extra]) => extra);
  // Divisors were read, but only the file has their exact bits.
  for (const { global } of found) if (global?.divisor) extras.push(global.from);
  // transformers ignores a head that the config ties; buffers are no weights.
  const ignored = (name: string): boolean =>
    (config.tieWordEmbeddings && name.startsWith('lm_head.')) || name.endsWith('.rotary_emb.inv_freq');
  const names = rest.map(([name]) => name).filter((name) => !isExtra(name));
  const unexpected = names.filter((name) => !ignored(name));
  if (strict && unexpected.length > 0)
    matcher.problem(
      'Q4282',
      `the checkpoint holds ${unexpected.length} tensors that the model does not use: ${some(unexpected)}`,
      { hint: 'is this the config.json of this checkpoint? With strict: false they are left out.' },
    );
  matcher.finish();
  return { found, leftOut: names, extras, config };
}

/** The parts of a `.dat`, by parameter. */
function matchDat(
  index: FileIndex,
  config: Qwen3Config,
  strict: boolean,
): { found: Found[]; config: Qwen3Config } {
  const matched = matchWeights(config, index, strict);
  const entries = new Map(index.entries.map((entry): [string, FileEntry] => [entry.name, entry]));
  const parts = new Map<string, Record<string, EntryOf>>();
  for (const { entry, tensor, part } of matched.items)
    parts.set(tensor, { ...parts.get(tensor), [part]: { index, entry: entries.get(entry)! } });
  const found = listParameters(matched.config).map((parameter): Found => {
    const { data, qdata, scale, global_scale: global } = parts.get(parameter.name)!;
    if (data) return { parameter, plain: data };
    const rest = { parameter, codes: qdata!, scales: scale! };
    return global ? { ...rest, global: { from: global, divisor: false } } : rest;
  });
  return { found, config: matched.config };
}

const folderOf = (path: string): string => path.replace(/[^/\\]*$/, '') || '.';

/** The directory in which config.json and the tokenizer stand unless they are named. */
export const homeOf = (path: string): string => (/\.(?:dat|safetensors)$/.test(path) ? folderOf(path) : path);

/**
 * @param path a directory with a safetensors checkpoint, a .safetensors file or a .dat; config.json stands beside it unless
 * it is named or given
 */
export async function readSourceModel(
  files: ReadableFiles,
  tensors: TensorFiles,
  path: string,
  options: { readonly configPath?: string; readonly configText?: string; readonly strict: boolean },
): Promise<SourceModel> {
  const { strict } = options;
  const configPath = options.configPath ?? files.join(homeOf(path), 'config.json');
  if (options.configText === undefined && !(await files.exists(configPath)))
    throw new Q4Error('Q4287', 'there is no config.json', { file: configPath, hint: 'name one with config' });
  const configText = options.configText ?? (await files.readText(configPath, 1 << 20));
  const json = parseJson(configText, configPath, 'Q4275');
  const config = parseQwen3Config(json, configPath);
  const rest = { configText, configTies: config.tieWordEmbeddings };
  if (path.endsWith('.dat')) {
    const index = await tensors.indexDat(path);
    const { found, config: actual } = matchDat(index, config, strict);
    const all: SourceTensor[] = [];
    for (const one of found) all.push(await complete(tensors, one));
    return { ...rest, format: 'dat', config: actual, tensors: all, extras: [], leftOut: [] };
  }
  const hfPath = files.join(homeOf(path), 'hf_quant_config.json');
  const hf = (await files.exists(hfPath))
    ? parseJson(await files.readText(hfPath, 1 << 20), hfPath, 'Q4275')
    : null;
  const declared = quantisedFormat(json, hf, configPath);
  const entries = await readTensors(files, tensors, path);
  const { found, leftOut, extras } = matchTensors(entries, config, path, strict);
  const all: SourceTensor[] = [];
  for (const one of found) all.push(await complete(tensors, one));
  const quantised = found.find(({ codes }) => codes);
  const format = quantised
    ? quantised.global!.divisor
      ? 'compressed-tensors'
      : 'modelopt'
    : (declared ?? 'safetensors');
  return { ...rest, format, config, tensors: all, extras, leftOut };
}
