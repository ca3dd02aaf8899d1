/** Golden cases of random models, made by the oracle alone: weights, config and what it computes with them. */
import { dat, E4M3, safetensors, TYPE, type Piece } from '../native/file-bytes.js';
import { normals, uniformSource } from '../native/random-values.js';
import { dequantise, globalScale, quantise } from '../oracle/nvfp4.js';
import { greedy, qwen3, type OracleConfig } from '../oracle/qwen3.js';
import { concat } from './tensors.js';

export const SMALL: OracleConfig = {
  vocab_size: 61,
  hidden_size: 32,
  intermediate_size: 48,
  num_hidden_layers: 3,
  num_attention_heads: 6,
  num_key_value_heads: 2,
  head_dim: 16,
  rms_norm_eps: 1e-6,
  rope_theta: 5e6,
  tie_word_embeddings: false,
};

export interface CaseOptions {
  readonly config?: Partial<OracleConfig>;
  readonly batch?: number;
  readonly tokens?: number;
  /** Of the prompt; its continuation has 24 tokens. */
  readonly greedyPrompt?: number | null;
  readonly seed?: number;
  readonly twoLevel?: boolean;
}

export interface GoldenCase {
  readonly config: OracleConfig;
  readonly weights: ReadonlyMap<string, Float64Array>;
  /** model.dat, config.json and golden.safetensors. */
  readonly files: Readonly<Record<string, string | Uint8Array>>;
  readonly tensors: ReadonlyMap<string, GoldenTensor>;
}

export interface GoldenTensor {
  readonly dtype: 'F32' | 'I64';
  readonly shape: readonly number[];
  readonly data: Float32Array | BigInt64Array;
}

const bytesOf = (data: NodeJS.TypedArray): Buffer =>
  Buffer.from(data.buffer, data.byteOffset, data.byteLength);

export const ids64 = (shape: readonly number[], ids: readonly number[]): GoldenTensor => ({
  dtype: 'I64',
  shape,
  data: BigInt64Array.from(ids, BigInt),
});
export const floats = (shape: readonly number[], data: ArrayLike<number>): GoldenTensor => ({
  dtype: 'F32',
  shape,
  data: Float32Array.from(data),
});

export function safetensorsOf(tensors: ReadonlyMap<string, GoldenTensor>): Buffer {
  const header: Record<string, object> = {};
  const parts: Buffer[] = [];
  let at = 0;
  for (const [name, { dtype, shape, data }] of tensors) {
    header[name] = { dtype, shape, data_offsets: [at, at + data.byteLength] };
    parts.push(bytesOf(data));
    at += data.byteLength;
  }
  return safetensors(header, Buffer.concat(parts));
}

/** Names and shapes of every parameter of a config. */
function shapes(config: OracleConfig): [name: string, shape: readonly number[]][] {
  const { hidden_size: h, head_dim: d, intermediate_size: i, vocab_size: v } = config;
  const [q, kv] = [config.num_attention_heads * d, config.num_key_value_heads * d];
  const layers = Array.from({ length: config.num_hidden_layers }, (_, n) =>
    (
      [
        ['input_layernorm', [h]],
        ['self_attn.q_proj', [q, h]],
        ['self_attn.k_proj', [kv, h]],
        ['self_attn.v_proj', [kv, h]],
        ['self_attn.q_norm', [d]],
        ['self_attn.k_norm', [d]],
        ['self_attn.o_proj', [h, q]],
        ['post_attention_layernorm', [h]],
        ['mlp.gate_proj', [i, h]],
        ['mlp.up_proj', [i, h]],
        ['mlp.down_proj', [h, i]],
      ] as [string, number[]][]
    ).map(([name, shape]): [string, readonly number[]] => [`model.layers.${n}.${name}.weight`, shape]),
  ).flat();
  return [
    ['model.embed_tokens.weight', [v, h]],
    ...layers,
    ['model.norm.weight', [h]],
    ...(config.tie_word_embeddings ? [] : [['lm_head.weight', [v, h]] as [string, readonly number[]]]),
  ];
}

const isPlain = (name: string): boolean => name.includes('norm') || name.includes('embed');

/** Random weights as a file holds them, and their exact values. */
function weightsOf(config: OracleConfig, seed: number, twoLevel: boolean) {
  const weights = new Map<string, Float64Array>();
  const pieces: Piece[] = [];
  for (const [index, [name, shape]] of shapes(config).entries()) {
    const size = shape.reduce((a, b) => a * b, 1);
    const values = normals(
      size,
      seed * 1000 + index,
      shape.length === 1 ? 0.1 : name.includes('embed') ? 1 : 0.2,
    );
    if (shape.length === 1) values.forEach((value, i) => (values[i] = value + 1));
    if (isPlain(name)) {
      weights.set(name, Float64Array.from(values));
      pieces.push({ name, type: TYPE.f32, shape: [...shape], payload: bytesOf(values) });
      continue;
    }
    const amax = values.reduce((a, x) => Math.max(a, Math.abs(x)), 0);
    const quantised = quantise(values, twoLevel ? globalScale(amax) : 1);
    weights.set(name, dequantise(quantised));
    const [out, inputs] = shape as [number, number];
    const { qdata, scale, globalScale: global } = quantised;
    pieces.push(
      { name: `${name}.qdata`, type: TYPE.u8, shape: [out, inputs / 2], payload: bytesOf(qdata) },
      { name: `${name}.scale`, type: E4M3, shape: [out, inputs / 16], payload: bytesOf(scale) },
    );
    if (twoLevel)
      pieces.push({
        name: `${name}.global_scale`,
        type: TYPE.f32,
        shape: [1],
        payload: bytesOf(Float32Array.of(global)),
      });
  }
  return { weights, file: dat(...pieces) };
}

export const configJson = (config: OracleConfig, changes: object = {}): string =>
  JSON.stringify({
    model_type: 'qwen3',
    architectures: ['Qwen3ForCausalLM'],
    max_position_embeddings: 256,
    hidden_act: 'silu',
    attention_bias: false,
    ...config,
    ...changes,
  });

/** A random model and what the oracle computes with it. */
export function goldenCase(options: CaseOptions = {}): GoldenCase {
  const { batch = 2, tokens = 13, greedyPrompt = 5, seed = 1, twoLevel = true } = options;
  const config = { ...SMALL, ...options.config };
  const { weights, file } = weightsOf(config, seed, twoLevel);
  const uniform = uniformSource(seed + 17);
  const rows = Array.from({ length: batch }, () =>
    Array.from({ length: tokens }, () => Math.floor(uniform() * config.vocab_size)),
  );
  const outputs = rows.map((ids) => qwen3(config, weights, ids));
  const tensors = new Map<string, GoldenTensor>([
    ['input_ids', ids64([batch, tokens], rows.flat())],
    ['logits', floats([batch, tokens, config.vocab_size], concat(outputs.map(({ logits }) => logits)))],
  ]);
  for (let i = 0; i <= config.num_hidden_layers; i++)
    tensors.set(
      `hidden_states.${i}`,
      floats([batch, tokens, config.hidden_size], concat(outputs.map(({ hidden }) => hidden[i]!))),
    );
  if (greedyPrompt !== null) {
    const ids = greedy(config, weights, rows[0]!.slice(0, greedyPrompt), 24);
    tensors.set('greedy', ids64([1, ids.length], ids));
  }
  const files = {
    'model.dat': file,
    'config.json': configJson(config),
    'golden.safetensors': safetensorsOf(tensors),
  };
  return { config, weights, files, tensors };
}
