/** Matches the entries of a weight file with the parameters of a model, both ways. */
import { Q4Error, Q4Errors, type ErrorDetails } from '../errors.js';
import type { FileEntry, FileIndex, FileType, LoadItem, WriteItem } from '../engine/types.js';
import type { Qwen3Config } from '../models/config.js';
import type { ScaleLevel, WeightStorage } from '../models/model.js';
import { listParameters, type Parameter } from '../models/parameters.js';
import { BLOCK } from '../program.js';
import type { Origin } from './model.js';

export interface MatchedWeights {
  /** `tieWordEmbeddings` as the file has it. */
  readonly config: Qwen3Config;
  readonly origin: ReadonlyMap<string, Origin>;
  readonly items: readonly LoadItem[];
  /** NVFP4 parameters without a global scale in the file: theirs is 1. */
  readonly singleLevel: readonly string[];
}

const HEAD = 'lm_head.weight';
const PLAIN: Partial<Record<FileType, WeightStorage['dtype']>> = { f32: 'f32', f16: 'f16', bf16: 'bf16' };

/** `X.weight.qdata`, or `X.qdata` as some writers name it. */
const partNames = (parameter: string, part: string): string[] => [
  `${parameter}.${part}`,
  `${parameter.replace(/\.weight$/, '')}.${part}`,
];

class Matcher {
  readonly problems: Q4Error[] = [];
  readonly #entries: Map<string, FileEntry>;
  readonly #used = new Set<string>();

  constructor(private readonly index: FileIndex) {
    this.#entries = new Map(index.entries.map((entry) => [entry.name, entry]));
  }

  problem(code: 'Q4281' | 'Q4282' | 'Q4283', message: string, details: ErrorDetails): void {
    this.problems.push(new Q4Error(code, message, { file: this.index.path, ...details }));
  }

  holds(parameter: string): boolean {
    return [parameter, ...partNames(parameter, 'qdata')].some((name) => this.#entries.has(name));
  }

  take(names: readonly string[]): FileEntry | null {
    for (const name of names) {
      const entry = this.#entries.get(name);
      if (!entry) continue;
      this.#used.add(name);
      return entry;
    }
    return null;
  }

  /** Checks an entry's type and shape. */
  expect(entry: FileEntry, types: readonly FileType[], shapes: readonly (readonly number[])[]): void {
    const fits = shapes.some((shape) => shape.join() === entry.shape.join());
    if (types.includes(entry.type) && fits) return;
    this.problem('Q4283', `entry '${entry.name}' does not match the config`, {
      entry: entry.name,
      offset: entry.offset,
      expected: `${types.join(' or ')} [${shapes[0]!.join(', ')}]`,
      found: `${entry.type} [${entry.shape.join(', ')}]`,
    });
  }

  unexpected(): string[] {
    return [...this.#entries.keys()].filter((name) => !this.#used.has(name));
  }
}

function matchParameter(
  matcher: Matcher,
  parameter: Parameter,
  items: LoadItem[],
  single: string[],
): Origin | null {
  const { name, shape } = parameter;
  const plain = matcher.take([name]);
  if (plain) {
    matcher.expect(plain, ['f32', 'f16', 'bf16'], [shape]);
    items.push({ entry: plain.name, tensor: name, part: 'data' });
    const dtype = parameter.kind === 'norm' ? 'f32' : (PLAIN[plain.type] ?? 'f32');
    return { type: plain.type, storage: { dtype, globalScale: 'none' } };
  }
  const codes = matcher.take(partNames(name, 'qdata'));
  if (!codes) return null;
  const [out, inputs] = shape as [number, number];
  if (parameter.kind === 'norm' || parameter.kind === 'embedding')
    matcher.problem('Q4283', `'${name}' is quantised in the file, but the ${parameter.kind} must be plain`, {
      entry: codes.name,
      expected: 'f32, f16 or bf16',
      found: 'NVFP4',
    });
  else matcher.expect(codes, ['u8', 'e2m1x2'], [[out, inputs / 2]]);
  items.push({ entry: codes.name, tensor: name, part: 'qdata' });
  const scale = matcher.take(partNames(name, 'scale'));
  if (scale) {
    matcher.expect(scale, ['e4m3'], [[out, inputs / BLOCK]]);
    items.push({ entry: scale.name, tensor: name, part: 'scale' });
  }
  const global = matcher.take(partNames(name, 'global_scale'));
  if (global) {
    matcher.expect(global, ['f32'], [[1], []]);
    items.push({ entry: global.name, tensor: name, part: 'global_scale' });
  } else single.push(name);
  return { type: codes.type, storage: { dtype: 'nvfp4', globalScale: global ? 'two_level' : 'none' } };
}

const some = (names: readonly string[]): string =>
  names.slice(0, 12).join(', ') + (names.length > 12 ? ` and ${names.length - 12} more` : '');

/**
 * @param strict entries that no parameter asks for are errors
 * @throws Q4Error or Q4Errors: Q4281 missing, Q4282 unexpected (each listed together), Q4283 type or shape.
 */
export function matchWeights(config: Qwen3Config, index: FileIndex, strict: boolean): MatchedWeights {
  const matcher = new Matcher(index);
  // A file that holds a head is used with it, even where the config ties; without one the embedding serves if it may.
  const tied = config.tieWordEmbeddings && !matcher.holds(HEAD);
  const actual: Qwen3Config = { ...config, tieWordEmbeddings: tied };
  const origin = new Map<string, Origin>();
  const items: LoadItem[] = [];
  const single: string[] = [];
  const missing: string[] = [];
  for (const parameter of listParameters(actual)) {
    const found = matchParameter(matcher, parameter, items, single);
    if (found) origin.set(parameter.name, found);
    else missing.push(parameter.name);
  }
  if (missing.length > 0)
    matcher.problem('Q4281', `the file lacks ${missing.length} of the model's parameters: ${some(missing)}`, {
      expected: `${listParameters(actual).length} parameters, as the config says`,
      found: `${index.entries.length} entries`,
      hint: 'is this the config.json of this file?',
    });
  const unexpected = matcher.unexpected();
  if (strict && unexpected.length > 0)
    matcher.problem(
      'Q4282',
      `the file holds ${unexpected.length} entries that the model does not use: ${some(unexpected)}`,
      {
        hint: 'is this the config.json of this file? With strict: false they are ignored.',
      },
    );
  if (matcher.problems.length === 1) throw matcher.problems[0];
  if (matcher.problems.length > 1) throw new Q4Errors(matcher.problems);
  return { config: actual, origin, items, singleLevel: single };
}

/** What one parameter becomes in a `.dat`. */
export interface Destination {
  readonly name: string;
  readonly shape: readonly number[];
  /** Store tensor that holds it. */
  readonly tensor: string;
  readonly nvfp4: boolean;
  readonly globalScale: ScaleLevel;
  /** Element type of a plain parameter. */
  readonly type: FileType;
}

/** Entries of a `.dat`, in the order given. */
export function datEntries(parameters: readonly Destination[]): WriteItem[] {
  return parameters.flatMap(({ name, shape, tensor, nvfp4, globalScale, type }): WriteItem[] => {
    if (!nvfp4) return [{ name, type, shape, tensor, part: 'data' }];
    const [out, inputs] = shape as [number, number];
    const entries: WriteItem[] = [
      { name: `${name}.qdata`, type: 'u8', shape: [out, inputs / 2], tensor, part: 'qdata' },
      { name: `${name}.scale`, type: 'e4m3', shape: [out, inputs / BLOCK], tensor, part: 'scale' },
    ];
    if (globalScale === 'two_level')
      entries.push({ name: `${name}.global_scale`, type: 'f32', shape: [1], tensor, part: 'global_scale' });
    return entries;
  });
}
