/**
 * One token a row, sampled on the device: the steady state of answering. Also sampling alone, for the first token after
 * a prefill.
 *
 * Tensors (names after the prefix): in.ids i32 [B] (read, then overwritten with the sampled tokens), in.past i32 [B]
 * (tokens in each row's cache; counted up), in.sampling f32 [B,8], in.rng i32 [B,2], in.seen u8 [B,V], out.logits f32
 * [B,V]; in.attend_from i32 [B] if asked for.
 *
 * The draw's counter is the number of tokens in the cache once the fed token is in it, so the first token (sampled after
 * a prefill of P tokens, past = P) draws with P, the next with P + 1: no two draws share a counter, and every route to a
 * token draws alike.
 */
import { apply, scope } from '../graph/combinators.js';
import { lower, type Lowered } from '../graph/lower.js';
import { linearInto } from '../graph/ops/linear.js';
import { increment, sample } from '../graph/ops/sampling.js';
import { fuseAddNorm } from '../graph/rewrites/fuse-add-norm.js';
import type { Tensor } from '../graph/types.js';
import { surround } from './forward-program.js';
import type { CacheOptions } from './kv-cache.js';
import { Inputs, type ProgramOptions } from './program-inputs.js';
import { headWeight, qwen3 } from './qwen3.js';

export interface DecodeProgramOptions extends ProgramOptions {
  /** Rows of the cache that decode together. */
  readonly batch: number;
  readonly cache: CacheOptions;
  readonly attendFrom?: boolean | undefined;
  /** Every row takes its most likely token, whatever temperature in.sampling has: a device need not ask. */
  readonly greedy?: boolean | undefined;
  readonly name?: string | undefined;
}

interface DecodeState {
  readonly ids: Tensor;
  readonly past: Tensor;
  readonly logits: Tensor;
}

const decodeState = (inputs: Inputs, batch: number, vocabulary: number): DecodeState => ({
  ids: inputs.own('in.ids', 'i32', [batch]),
  past: inputs.own('in.past', 'i32', [batch]),
  logits: inputs.own('out.logits', 'f32', [batch, vocabulary]),
});

function recordSampling(
  inputs: Inputs,
  state: DecodeState,
  { batch, greedy, model }: Pick<DecodeProgramOptions, 'batch' | 'greedy' | 'model'>,
): void {
  const vocabulary = model.config.vocabSize;
  const at = inputs.at.at('sample', 'sample');
  const sampling = inputs.own('in.sampling', 'f32', [batch, 8]);
  const rng = inputs.own('in.rng', 'i32', [batch, 2]);
  const seen = inputs.own('in.seen', 'u8', [batch, vocabulary]);
  sample(
    { logits: state.logits, sampling, rng, past: state.past, seen, ids: state.ids },
    greedy ?? false,
    at,
  );
}

/**
 * Feeds in.ids at position in.past, counts in.past up (at most capacity − 1) and samples the next tokens into in.ids.
 * The caller stops before a row's cache is full.
 */
export function decodeProgram(options: DecodeProgramOptions): Lowered {
  const { model, batch, cache } = options;
  const { vocabSize } = model.config;
  const inputs = new Inputs(options);
  const state = decodeState(inputs, batch, vocabSize);
  const around = surround(inputs, options, {
    positions: state.past,
    attendFrom: options.attendFrom ? inputs.own('in.attend_from', 'i32', [batch]) : null,
    past: state.past,
    cache,
  });
  const hidden = apply(state.ids, qwen3(model.config, around), inputs.at);
  apply(hidden, scope('lm_head', linearInto(headWeight(model.config, around), state.logits)), inputs.at);
  increment(state.past, 1, cache.capacity - 1, inputs.at.at('sample', 'sample'));
  recordSampling(inputs, state, options);
  return lower(fuseAddNorm(inputs.at.finish(options.name ?? 'decode')));
}

/** Samples from out.logits into in.ids: the first tokens after a prefill, on the same tensors as `decodeProgram`. */
export function sampleProgram(
  options: ProgramOptions & { readonly batch: number; readonly name?: string },
): Lowered {
  const inputs = new Inputs(options);
  recordSampling(inputs, decodeState(inputs, options.batch, options.model.config.vocabSize), options);
  return lower(inputs.at.finish(options.name ?? 'sample'));
}
