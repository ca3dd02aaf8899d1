/**
 * The wiring of Qwen3, once. Prefill, decode, evaluation and training are all derived from it.
 *
 * Scopes are Hugging Face module names, so parameters are called as in Hugging Face files. Four scopes have no module
 * there: `attention`, `swiglu`, and the sums `residual_attention` and `residual_mlp`.
 * Source: formats.md §3; transformers' modeling_qwen3.
 */
import { fanout, layers, merge, pipe, residual, scope, type Wire } from '../graph/combinators.js';
import { attention } from '../graph/ops/attention.js';
import { embedding } from '../graph/ops/embedding.js';
import { headNormRope } from '../graph/ops/head-norm-rope.js';
import { kvAppend, type LayerCache } from '../graph/ops/kv-append.js';
import { linear } from '../graph/ops/linear.js';
import { rmsNorm } from '../graph/ops/rms-norm.js';
import { swiglu } from '../graph/ops/swiglu.js';
import type { Recorder } from '../graph/recorder.js';
import type { Tensor } from '../graph/types.js';
import type { Qwen3Config } from './config.js';
import type { ParameterTraits } from './parameters.js';

/** What the wiring gets from the program that it is recorded for. */
export interface Surroundings {
  /** The parameter called `<scope>.weight`. */
  readonly parameter: (name: string, shape: readonly number[], traits: ParameterTraits) => Tensor;
  /** i32 [N], the place of each row in its sequence. */
  readonly positions: Tensor;
  /** i32 [N]: the first key that each row sees; null: all. */
  readonly attendFrom: Tensor | null;
  readonly batch: number;
  /** With a cache, rows are appended at `past` (i32 [batch]) and see all that it holds. */
  readonly cache: { readonly past: Tensor; readonly layer: (index: number) => LayerCache } | null;
}

const weightAt = (
  around: Surroundings,
  at: Recorder,
  shape: readonly number[],
  traits: ParameterTraits,
): Tensor => around.parameter(`${at.path}.weight`, shape, traits);

/** ids i32 [N] → act [N, hidden], after the last norm. */
export const qwen3 = (config: Qwen3Config, around: Surroundings): Wire =>
  scope(
    'model',
    pipe(
      scope('embed_tokens', (ids, at) =>
        embedding(weightAt(around, at, [config.vocabSize, config.hiddenSize], { kind: 'embedding' }))(
          ids,
          at,
        ),
      ),
      scope(
        'layers',
        layers(config.numHiddenLayers, (index) => decoderLayer(config, around, index)),
      ),
      norm('norm', config, around),
    ),
  );

/** The head's weight [vocabulary, hidden]: `lm_head.weight`, or the embedding's when they are tied. */
export const headWeight = (config: Qwen3Config, around: Surroundings): Tensor =>
  config.tieWordEmbeddings
    ? around.parameter('model.embed_tokens.weight', [config.vocabSize, config.hiddenSize], {
        kind: 'embedding',
      })
    : around.parameter('lm_head.weight', [config.vocabSize, config.hiddenSize], { kind: 'head' });

const decoderLayer = (config: Qwen3Config, around: Surroundings, index: number): Wire =>
  pipe(
    residual(
      'residual_attention',
      pipe(norm('input_layernorm', config, around), scope('self_attn', selfAttention(config, around, index))),
    ),
    residual(
      'residual_mlp',
      pipe(norm('post_attention_layernorm', config, around), scope('mlp', feedForward(config, around))),
    ),
  );

const selfAttention = (config: Qwen3Config, around: Surroundings, index: number): Wire => {
  const { numAttentionHeads: heads, numKeyValueHeads: kvHeads, headDim, hiddenSize } = config;
  return pipe(
    fanout(
      pipe(projection('q_proj', heads * headDim, around, 'qkv'), headNorm('q_norm', config, around)),
      pipe(projection('k_proj', kvHeads * headDim, around, 'qkv'), headNorm('k_norm', config, around)),
      projection('v_proj', kvHeads * headDim, around, 'qkv'),
    ),
    scope('attention', merge<readonly [Tensor, Tensor, Tensor], Tensor>(attend(config, around, index))),
    projection('o_proj', hiddenSize, around),
  );
};

const attend =
  (config: Qwen3Config, around: Surroundings, index: number) =>
  (q: Tensor, k: Tensor, v: Tensor, at: Recorder): Tensor => {
    const { batch, attendFrom, cache } = around;
    const { numAttentionHeads: heads, numKeyValueHeads: kvHeads, headDim } = config;
    const shape = { batch, heads, kvHeads, headDim };
    if (!cache) return attention({ q, k, v, attendFrom, past: null }, shape, at);
    const kept = cache.layer(index);
    kvAppend(k, v, cache.past, batch, kept, at);
    return attention({ q, k: kept.k, v: kept.v, attendFrom, past: cache.past }, shape, at);
  };

const feedForward = (config: Qwen3Config, around: Surroundings): Wire =>
  pipe(
    fanout(
      projection('gate_proj', config.intermediateSize, around, 'gate_up'),
      projection('up_proj', config.intermediateSize, around, 'gate_up'),
    ),
    scope('swiglu', merge<readonly [Tensor, Tensor], Tensor>(swiglu)),
    projection('down_proj', config.hiddenSize, around),
  );

/** A linear layer; `fuses` names the projections that serving engines run as one. */
const projection = (name: string, outputs: number, around: Surroundings, fuses?: string): Wire =>
  scope(name, (x, at) => {
    const group = fuses === undefined ? null : `${at.path.slice(0, at.path.lastIndexOf('.'))}.${fuses}`;
    return linear(weightAt(around, at, [outputs, x.shape[1]!], { kind: 'projection', group }))(x, at);
  });

const norm = (name: string, config: Qwen3Config, around: Surroundings): Wire =>
  scope(name, (x, at) =>
    rmsNorm(weightAt(around, at, [config.hiddenSize], { kind: 'norm' }), config.rmsNormEps)(x, at),
  );

const headNorm = (name: string, config: Qwen3Config, around: Surroundings): Wire =>
  scope(name, (x, at) => {
    const { headDim, rmsNormEps: eps, ropeTheta: theta } = config;
    const weight = weightAt(around, at, [headDim], { kind: 'norm' });
    return headNormRope(weight, around.positions, { headDim, eps, theta })(x, at);
  });

/** The decoder layer that a scope belongs to: what is recomputed as one. */
export const blockOf = (path: string): string | null => /^model\.layers\.\d+/.exec(path)?.[0] ?? null;

/** Scopes whose results are Hugging Face's `hidden_states`, in order: the embedding's, then every layer's. */
export const hiddenStateScopes = (config: Qwen3Config): string[] => [
  'model.embed_tokens',
  ...Array.from({ length: config.numHiddenLayers }, (_, index) => `model.layers.${index}`),
];
