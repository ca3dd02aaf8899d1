/**
 * Qwen3 as formats.md §3 describes it, in double precision and imperative code: what golden cases of our own are made
 * of, and a second opinion on those that others made. Shares nothing with runtime/models.
 */
import { attention, headNormRope, linear, rmsNorm, swiglu, type Values } from './forward.js';

/** The keys of a Hugging Face config.json that the wiring depends on. */
export interface OracleConfig {
  readonly vocab_size: number;
  readonly hidden_size: number;
  readonly intermediate_size: number;
  readonly num_hidden_layers: number;
  readonly num_attention_heads: number;
  readonly num_key_value_heads: number;
  readonly head_dim: number;
  readonly rms_norm_eps: number;
  readonly rope_theta: number;
  readonly tie_word_embeddings: boolean;
}

export interface OracleOutput {
  /** The embedding, then the output of every layer before the final norm: [T, H] each. */
  readonly hidden: readonly Float64Array[];
  /** [T, V] */
  readonly logits: Float64Array;
}

const plus = (a: Float64Array, b: Float64Array): Float64Array => a.map((value, i) => value + b[i]!);

/** One sequence from its beginning. `weights` holds dequantised values by Hugging Face name. */
export function qwen3(
  config: OracleConfig,
  weights: ReadonlyMap<string, Values>,
  ids: readonly number[],
): OracleOutput {
  const { hidden_size: width, head_dim: dim, num_attention_heads: heads, rms_norm_eps: eps } = config;
  const { num_key_value_heads: kvHeads, intermediate_size: inner, rope_theta: theta } = config;
  const n = ids.length;
  const weight = (name: string): Values => weights.get(`${name}.weight`)!;
  const table = weight('model.embed_tokens');
  let h: Float64Array = new Float64Array(n * width);
  ids.forEach((id, row) => {
    for (let i = 0; i < width; i++) h[row * width + i] = table[id * width + i]!;
  });
  const hidden = [h];
  const positions = ids.map((_, i) => i);
  for (let layer = 0; layer < config.num_hidden_layers; layer++) {
    const at = `model.layers.${layer}`;
    const x = rmsNorm(h, weight(`${at}.input_layernorm`), n, width, eps).y;
    const project = (name: string, outputs: number): Float64Array =>
      linear(x, weight(`${at}.self_attn.${name}_proj`), n, width, outputs);
    const turned = (name: 'q' | 'k', count: number): Float64Array => {
      const norm = weight(`${at}.self_attn.${name}_norm`);
      return headNormRope(project(name, count * dim), norm, positions, n, count, dim, eps, theta).y;
    };
    const shape = { batch: 1, steps: n, capacity: n, heads, kvHeads, dim };
    const seen = attention(turned('q', heads), turned('k', kvHeads), project('v', kvHeads * dim), shape).out;
    h = plus(h, linear(seen, weight(`${at}.self_attn.o_proj`), n, heads * dim, width));
    const m = rmsNorm(h, weight(`${at}.post_attention_layernorm`), n, width, eps).y;
    const gate = linear(m, weight(`${at}.mlp.gate_proj`), n, width, inner);
    const up = linear(m, weight(`${at}.mlp.up_proj`), n, width, inner);
    h = plus(h, linear(swiglu(gate, up), weight(`${at}.mlp.down_proj`), n, inner, width));
    hidden.push(h);
  }
  const head = config.tie_word_embeddings ? table : weight('lm_head');
  const last = rmsNorm(h, weight('model.norm'), n, width, eps).y;
  return { hidden, logits: linear(last, head, n, width, config.vocab_size) };
}

/** The likeliest token at every step; the lowest id of equals. */
export function greedy(
  config: OracleConfig,
  weights: ReadonlyMap<string, Values>,
  prompt: readonly number[],
  tokens: number,
): number[] {
  const ids = [...prompt];
  for (let step = 0; step < tokens; step++) {
    const logits = qwen3(config, weights, ids).logits.subarray(-config.vocab_size);
    ids.push(logits.indexOf(logits.reduce((a, b) => Math.max(a, b))));
  }
  return ids;
}
