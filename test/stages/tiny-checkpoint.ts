/** Tiny Qwen3 checkpoints as Hugging Face directories, with a safetensors writer of a few lines of their own. */
import { uniformSource } from '../native/random-values.js';
import { decode, encode, F16 } from '../oracle/number-formats.js';

export const TINY = {
  architectures: ['Qwen3ForCausalLM'],
  model_type: 'qwen3',
  vocab_size: 48,
  hidden_size: 64,
  intermediate_size: 96,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  head_dim: 16,
  rms_norm_eps: 1e-6,
  rope_theta: 5e6,
  max_position_embeddings: 128,
  tie_word_embeddings: false,
  torch_dtype: 'bfloat16',
};

export type Dtype = 'BF16' | 'F16' | 'F32' | 'U8' | 'F8_E4M3' | 'F64' | 'I64';

export interface Raw {
  readonly dtype: Dtype;
  readonly shape: readonly number[];
  readonly bytes: Buffer;
}
export type Raws = ReadonlyMap<string, Raw>;

/** Names and shapes of every parameter, as transformers' Qwen3ForCausalLM has them. */
export function shapes(config = TINY): [string, number[]][] {
  const { hidden_size: h, intermediate_size: m, head_dim: d, vocab_size: v } = config;
  const q = config.num_attention_heads * d;
  const kv = config.num_key_value_heads * d;
  const layers = Array.from({ length: config.num_hidden_layers }, (_, i): [string, number[]][] => [
    [`model.layers.${i}.self_attn.q_proj.weight`, [q, h]],
    [`model.layers.${i}.self_attn.k_proj.weight`, [kv, h]],
    [`model.layers.${i}.self_attn.v_proj.weight`, [kv, h]],
    [`model.layers.${i}.self_attn.o_proj.weight`, [h, q]],
    [`model.layers.${i}.self_attn.q_norm.weight`, [d]],
    [`model.layers.${i}.self_attn.k_norm.weight`, [d]],
    [`model.layers.${i}.mlp.gate_proj.weight`, [m, h]],
    [`model.layers.${i}.mlp.up_proj.weight`, [m, h]],
    [`model.layers.${i}.mlp.down_proj.weight`, [h, m]],
    [`model.layers.${i}.input_layernorm.weight`, [h]],
    [`model.layers.${i}.post_attention_layernorm.weight`, [h]],
  ]);
  return [
    ['model.embed_tokens.weight', [v, h]],
    ...layers.flat(),
    ['model.norm.weight', [h]],
    ...(config.tie_word_embeddings ? [] : [['lm_head.weight', [v, h]] as [string, number[]]]),
  ];
}

/** Normal values, or with tails as of Student's t with three degrees of freedom. */
export function values(n: number, seed: number, heavy: boolean): Float32Array {
  const uniform = uniformSource(seed);
  const normal = (): number => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
  return Float32Array.from({ length: n }, () => {
    const value = normal();
    if (!heavy) return value * 0.02;
    return (value * 0.02) / Math.sqrt((normal() ** 2 + normal() ** 2 + normal() ** 2) / 3);
  });
}

/** Rounded to nearest even. */
function bf16Bits(x: Float32Array): Uint16Array {
  const words = new Uint32Array(Float32Array.from(x).buffer);
  const round = (word: number): number => (word + 0x7fff + ((word >>> 16) & 1)) >>> 16;
  return Uint16Array.from(words, (word, i) => (Number.isNaN(x[i]) ? 0x7fc0 : round(word)));
}

export function rawOf(shape: readonly number[], x: Float32Array, dtype: 'BF16' | 'F16' | 'F32'): Raw {
  if (dtype === 'F32') return { dtype, shape, bytes: Buffer.from(Float32Array.from(x).buffer) };
  const bits = dtype === 'BF16' ? bf16Bits(x) : Uint16Array.from(x, (value) => encode(F16, value));
  return { dtype, shape, bytes: Buffer.from(bits.buffer) };
}

/** The values of a plain tensor. */
export function floatsOf({ dtype, bytes }: Raw): Float32Array {
  const copy = Uint8Array.from(bytes).buffer;
  if (dtype === 'F32') return new Float32Array(copy);
  const codes = new Uint16Array(copy);
  if (dtype === 'BF16') return new Float32Array(Uint32Array.from(codes, (code) => code << 16).buffer);
  return Float32Array.from(codes, (code) => decode(F16, code));
}

export function randomTensors(
  config = TINY,
  dtype: 'BF16' | 'F16' | 'F32' = 'BF16',
  heavy = false,
): Map<string, Raw> {
  const tensors = new Map<string, Raw>();
  shapes(config).forEach(([name, shape], i) => {
    const n = shape.reduce((a, b) => a * b, 1);
    const x = values(n, 100 + i, heavy);
    if (shape.length === 1) x.forEach((value, j) => (x[j] = 1 + value));
    tensors.set(name, rawOf(shape, x, dtype));
  });
  return tensors;
}

export function safetensorsFile(tensors: Raws, metadata: object = { format: 'pt' }): Buffer {
  const header: Record<string, object> = { __metadata__: metadata };
  let at = 0;
  for (const [name, { dtype, shape, bytes }] of tensors)
    header[name] = { dtype, shape, data_offsets: [at, (at += bytes.length)] };
  const json = Buffer.from(JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(json.length));
  return Buffer.concat([length, json, ...[...tensors.values()].map(({ bytes }) => bytes)]);
}

export function readSafetensors(file: Buffer): Map<string, Raw> {
  const length = Number(file.readBigUInt64LE());
  const header = JSON.parse(file.toString('utf8', 8, 8 + length)) as Record<
    string,
    { dtype: Dtype; shape: number[]; data_offsets: [number, number] }
  >;
  const data = file.subarray(8 + length);
  return new Map(
    Object.entries(header)
      .filter(([name]) => name !== '__metadata__')
      .map(
        ([
          name,
          {
            dtype,
            shape,
            data_offsets: [begin, end],
          },
        ]) => [name, { dtype, shape, bytes: data.subarray(begin, end) }],
      ),
  );
}

/** Files of a checkpoint directory; with `shards` above 1 the tensors are dealt out in turn. */
export function checkpointFiles(
  tensors: Raws,
  config: object = TINY,
  shards = 1,
): Record<string, string | Buffer> {
  const text = JSON.stringify(config, null, 2);
  if (shards === 1) return { 'config.json': text, 'model.safetensors': safetensorsFile(tensors) };
  const parts = Array.from({ length: shards }, () => new Map<string, Raw>());
  const map: Record<string, string> = {};
  const file = (i: number): string => `model-0000${i + 1}-of-0000${shards}.safetensors`;
  [...tensors].reverse().forEach(([name, raw], i) => {
    parts[i % shards]!.set(name, raw);
    map[name] = file(i % shards);
  });
  const files: Record<string, string | Buffer> = { 'config.json': text };
  files['model.safetensors.index.json'] = JSON.stringify({ metadata: { total_size: 1 }, weight_map: map });
  parts.forEach((part, i) => (files[file(i)] = safetensorsFile(part)));
  return files;
}

/** A YAML pipeline of one stage. */
export const oneStage = (uses: string, parameters: object): string =>
  `version: 1\nstages:\n  - id: it\n    uses: ${uses}\n    with: ${JSON.stringify(parameters)}\n`;
