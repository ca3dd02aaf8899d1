/**
 * The Hugging Face `config.json` of a dense Qwen3 model, checked once at the door. Inside, values are complete and
 * frozen. What the wiring does not compute is refused by name; all problems are told together.
 */
import { Q4Error, Q4Errors, type ErrorDetails } from '../errors.js';
import { BLOCK } from '../program.js';

export interface Qwen3Config {
  readonly vocabSize: number;
  readonly hiddenSize: number;
  readonly intermediateSize: number;
  readonly numHiddenLayers: number;
  readonly numAttentionHeads: number;
  readonly numKeyValueHeads: number;
  /** Explicit: numAttentionHeads · headDim need not equal hiddenSize. */
  readonly headDim: number;
  readonly rmsNormEps: number;
  readonly ropeTheta: number;
  readonly maxPositionEmbeddings: number;
  readonly tieWordEmbeddings: boolean;
  /** Empty when the config names none. */
  readonly eosTokenIds: readonly number[];
  readonly bosTokenId: number | null;
  /** `torch_dtype` or `dtype` as written, for exports. */
  readonly dtype: string | null;
}

type Json = Readonly<Record<string, unknown>>;

const isObject = (value: unknown): value is Json =>
  typeof value === 'object' && value !== null && !Array.isArray(value);
const show = (value: unknown): string => JSON.stringify(value) ?? 'nothing';

/** Reads keys and collects problems. */
class Reader {
  readonly problems: Q4Error[] = [];

  constructor(
    readonly json: Json,
    private readonly file: string | undefined,
  ) {}

  problem(code: 'Q4271' | 'Q4272' | 'Q4273' | 'Q4274', message: string, details: ErrorDetails = {}): void {
    const place = this.file === undefined ? {} : { file: this.file };
    this.problems.push(new Q4Error(code, message, { ...place, ...details }));
  }

  /** null counts as absent, as in Hugging Face configs. */
  get(key: string): unknown {
    return Object.hasOwn(this.json, key) ? (this.json[key] ?? undefined) : undefined;
  }

  number(key: string, accepts: (value: number) => boolean, expected: string, fallback?: number): number {
    const value = this.get(key);
    if (value === undefined) {
      if (fallback !== undefined) return fallback;
      this.problem('Q4272', `config.json has no ${key}`, { entry: key, expected });
      return NaN;
    }
    if (typeof value === 'number' && accepts(value)) return value;
    this.problem('Q4271', `${key} is not ${expected}`, { entry: key, expected, found: show(value) });
    return NaN;
  }

  size(key: string, fallback?: number): number {
    const accepts = (value: number): boolean => Number.isInteger(value) && value >= 1 && value < 2 ** 31;
    return this.number(key, accepts, 'a whole number from 1 to 2147483647', fallback);
  }

  boolean(key: string, fallback: boolean): boolean {
    const value = this.get(key);
    if (value === undefined || typeof value === 'boolean') return value ?? fallback;
    this.problem('Q4271', `${key} is not true or false`, {
      entry: key,
      expected: 'true or false',
      found: show(value),
    });
    return fallback;
  }

  unsupported(key: string, what: string, expected: string): void {
    this.problem('Q4273', `${what} is not supported`, { entry: key, expected, found: show(this.get(key)) });
  }
}

function refuseUnsupported(reader: Reader): void {
  const type = reader.get('model_type');
  if (type === undefined) reader.problem('Q4272', 'config.json has no model_type', { expected: 'qwen3' });
  else if (type === 'qwen3_moe')
    reader.problem('Q4273', 'mixture of experts (model_type qwen3_moe) is not supported', {
      entry: 'model_type',
    });
  else if (type !== 'qwen3')
    reader.problem('Q4274', `model_type ${show(type)} is not supported`, {
      entry: 'model_type',
      expected: 'qwen3',
      found: show(type),
    });
  const architectures = reader.get('architectures');
  if (architectures !== undefined && type === 'qwen3') {
    if (!Array.isArray(architectures) || !architectures.includes('Qwen3ForCausalLM'))
      reader.problem('Q4274', `architectures ${show(architectures)} is not supported`, {
        entry: 'architectures',
        expected: '["Qwen3ForCausalLM"]',
        found: show(architectures),
      });
  }
  for (const key of ['num_experts', 'num_local_experts', 'num_experts_per_tok'])
    if (reader.get(key) !== undefined && reader.get(key) !== 0)
      reader.unsupported(key, `mixture of experts (${key})`, 'a dense model');
  if (reader.boolean('use_sliding_window', false))
    reader.unsupported('use_sliding_window', 'sliding window attention', 'use_sliding_window: false');
  const layerTypes = reader.get('layer_types');
  if (layerTypes !== undefined) {
    const odd = Array.isArray(layerTypes)
      ? (layerTypes as unknown[]).find((layer) => layer !== 'full_attention')
      : layerTypes;
    if (odd !== undefined)
      reader.problem('Q4273', `the layer type ${show(odd)} is not supported`, {
        entry: 'layer_types',
        expected: 'full_attention in every layer',
      });
  }
  if (reader.boolean('attention_bias', false))
    reader.unsupported(
      'attention_bias',
      'a bias in attention projections (attention_bias)',
      'attention_bias: false',
    );
  const activation = reader.get('hidden_act');
  if (activation !== undefined && activation !== 'silu')
    reader.unsupported('hidden_act', `hidden_act ${show(activation)}`, 'silu');
  const dropout = reader.get('attention_dropout');
  if (dropout !== undefined && dropout !== 0)
    reader.unsupported('attention_dropout', 'dropout in attention (attention_dropout)', '0');
}

/** The RoPE base: at the top, or in rope_parameters (transformers 5) or rope_scaling; all that are given must agree. */
function readTheta(reader: Reader): number {
  const given: number[] = [];
  const take = (value: unknown, entry: string): void => {
    if (value === undefined || value === null) return;
    if (typeof value === 'number' && Number.isFinite(value) && value > 1) given.push(value);
    else
      reader.problem('Q4271', `${entry} is not a number above 1`, {
        entry,
        expected: 'a number above 1',
        found: show(value),
      });
  };
  const before = reader.problems.length;
  take(reader.get('rope_theta'), 'rope_theta');
  for (const key of ['rope_parameters', 'rope_scaling']) {
    const value = reader.get(key);
    if (value === undefined) continue;
    if (!isObject(value)) {
      reader.problem('Q4271', `${key} is not an object`, {
        entry: key,
        expected: 'an object',
        found: show(value),
      });
      continue;
    }
    const kind = value['rope_type'] ?? value['type'] ?? 'default';
    if (kind !== 'default')
      reader.unsupported(key, `scaled RoPE (${show(kind)} in ${key})`, 'rope_type: default');
    const partial = value['partial_rotary_factor'] ?? 1;
    if (partial !== 1) reader.unsupported(key, `partial RoPE (partial_rotary_factor in ${key})`, '1');
    take(value['rope_theta'], `${key}.rope_theta`);
  }
  if (new Set(given).size > 1)
    reader.problem('Q4271', 'rope_theta is given with different values', {
      entry: 'rope_theta',
      found: given.join(', '),
    });
  if (given.length === 0 && reader.problems.length === before)
    reader.problem('Q4272', 'config.json has no rope_theta', {
      entry: 'rope_theta',
      expected: 'rope_theta at the top, or in rope_parameters',
    });
  return given[0] ?? NaN;
}

/** Token ids: one, several, or none. */
function readTokenIds(reader: Reader, key: string, vocabulary: number): number[] {
  const value = reader.get(key);
  if (value === undefined) return [];
  const ids: unknown[] = Array.isArray(value) ? value : [value];
  const fits = (id: unknown): id is number =>
    typeof id === 'number' && Number.isInteger(id) && id >= 0 && !(id >= vocabulary);
  if (ids.every(fits)) return ids;
  reader.problem('Q4271', `${key} is not a token id below vocab_size`, { entry: key, found: show(value) });
  return [];
}

function checkShapes(reader: Reader, config: Qwen3Config): void {
  const refuse = (entry: string, message: string, expected: string): void =>
    reader.problem('Q4271', message, { entry, expected });
  const {
    hiddenSize,
    intermediateSize,
    numAttentionHeads: heads,
    numKeyValueHeads: kvHeads,
    headDim,
  } = config;
  if (heads % kvHeads > 0)
    refuse(
      'num_key_value_heads',
      `num_attention_heads (${heads}) is not a multiple of num_key_value_heads (${kvHeads})`,
      'each kv head serves the same number of heads',
    );
  if (headDim % 2 > 0) refuse('head_dim', `head_dim (${headDim}) is odd: RoPE turns pairs`, 'an even number');
  const widths: [string, string, number][] = [
    ['hidden_size', 'hidden_size', hiddenSize],
    ['intermediate_size', 'intermediate_size', intermediateSize],
    ['head_dim', 'num_attention_heads · head_dim', heads * headDim],
  ];
  for (const [entry, name, width] of widths)
    if (width % BLOCK > 0)
      refuse(
        entry,
        `${name} (${width}) is not a multiple of ${BLOCK}, the width of an NVFP4 block`,
        `a multiple of ${BLOCK}`,
      );
}

/**
 * @param json the parsed config.json
 * @param file its path, for messages
 * @throws Q4Error, or Q4Errors when there are several problems: Q4271 invalid, Q4272 missing, Q4273 unsupported feature,
 * Q4274 another model type.
 */
export function parseQwen3Config(json: unknown, file?: string): Qwen3Config {
  if (!isObject(json))
    throw new Q4Error('Q4271', 'config.json is not an object', {
      ...(file !== undefined && { file }),
      expected: "the model's Hugging Face config.json",
    });
  const reader = new Reader(json, file);
  refuseUnsupported(reader);
  const hiddenSize = reader.size('hidden_size');
  const numAttentionHeads = reader.size('num_attention_heads');
  const perHead = hiddenSize / numAttentionHeads;
  const divides = Number.isInteger(perHead);
  if (reader.get('head_dim') === undefined && !divides && !Number.isNaN(perHead))
    reader.problem(
      'Q4272',
      'config.json has no head_dim, and hidden_size is no multiple of num_attention_heads',
      {
        entry: 'head_dim',
      },
    );
  const vocabSize = reader.size('vocab_size');
  const dtype = reader.get('dtype') ?? reader.get('torch_dtype');
  const positive = (value: number): boolean => Number.isFinite(value) && value > 0;
  const config: Qwen3Config = {
    vocabSize,
    hiddenSize,
    intermediateSize: reader.size('intermediate_size'),
    numHiddenLayers: reader.size('num_hidden_layers'),
    numAttentionHeads,
    numKeyValueHeads: reader.size('num_key_value_heads', numAttentionHeads),
    headDim: reader.size('head_dim', divides ? perHead : NaN),
    rmsNormEps: reader.number('rms_norm_eps', positive, 'a number above 0', 1e-6),
    ropeTheta: readTheta(reader),
    maxPositionEmbeddings: reader.size('max_position_embeddings', 32768),
    tieWordEmbeddings: reader.boolean('tie_word_embeddings', false),
    eosTokenIds: Object.freeze(readTokenIds(reader, 'eos_token_id', vocabSize)),
    bosTokenId: readTokenIds(reader, 'bos_token_id', vocabSize)[0] ?? null,
    dtype: typeof dtype === 'string' ? dtype : null,
  };
  checkShapes(reader, config);
  if (reader.problems.length === 1) throw reader.problems[0];
  if (reader.problems.length > 1) throw new Q4Errors(reader.problems);
  return Object.freeze(config);
}
