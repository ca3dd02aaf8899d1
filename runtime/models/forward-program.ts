/**
 * The forward pass: with a cache it is prefill (and decode without sampling), without one it is what training runs.
 *
 * Inputs (names after the prefix): in.ids, in.positions i32 [N]; in.attend_from i32 [N] if asked for; in.past i32
 * [batch] with a cache; in.rows i32 [M] when logits of M rows are wanted. Output: out.logits f32 [M or N, V].
 */
import { Q4Error } from '../errors.js';
import { apply, pipe, scope } from '../graph/combinators.js';
import { lower, type Lowered } from '../graph/lower.js';
import { gatherRows } from '../graph/ops/gather-rows.js';
import { linearInto } from '../graph/ops/linear.js';
import { fuseAddNorm } from '../graph/rewrites/fuse-add-norm.js';
import { prune } from '../graph/rewrites/prune.js';
import type { Tensor } from '../graph/types.js';
import { layerCache, type CacheOptions } from './kv-cache.js';
import { Inputs, type ProgramOptions } from './program-inputs.js';
import { headWeight, qwen3, type Surroundings } from './qwen3.js';

export interface ForwardOptions extends ProgramOptions {
  /** Sequences that run together; rows are ordered by sequence, N = batch · tokens. */
  readonly batch: number;
  readonly tokens: number;
  /** Append to a cache and attend to it. Without: attention among the rows themselves. */
  readonly cache?: CacheOptions | undefined;
  /** Rows see keys from in.attend_from on (packed samples, left padding). Default false. */
  readonly attendFrom?: boolean | undefined;
  /** Rows whose logits are computed: all, none, or as many as in.rows names. Default all. */
  readonly logits?: 'all' | 'none' | number | undefined;
  /** Logits go to rows `row`… of this tensor f32 [rows, V] of another program instead of out.logits. */
  readonly logitsInto?: { readonly name: string; readonly rows: number; readonly row: number } | undefined;
  /** Scopes whose results are kept in the store as `<prefix>tap.<scope>`. */
  readonly taps?: readonly string[] | undefined;
  readonly name?: string | undefined;
}

/** The wiring's surroundings for a program of `batch` sequences. */
export function surround(
  inputs: Inputs,
  options: ProgramOptions & { readonly batch: number },
  given: {
    positions: Tensor;
    attendFrom: Tensor | null;
    past: Tensor | null;
    cache?: CacheOptions | undefined;
  },
): Surroundings {
  const { batch, model } = options;
  const { positions, attendFrom, past, cache } = given;
  const { at, parameter } = inputs;
  const layer = (index: number) => layerCache(index, batch, model.config, cache!, at);
  return { parameter, positions, attendFrom, batch, cache: cache && past ? { past, layer } : null };
}

/** @throws Q4Error Q4510 when the options contradict each other, Q4515 for a tap that names nothing. */
export function forwardProgram(options: ForwardOptions): Lowered {
  const { model, batch, tokens, cache, logits = 'all', taps = [] } = options;
  if (cache && (cache.row ?? 0) + batch > cache.rows)
    throw new Q4Error(
      'Q4510',
      `rows ${cache.row ?? 0} to ${(cache.row ?? 0) + batch} lie outside a cache of ${cache.rows}`,
    );
  const inputs = new Inputs(options);
  const { at } = inputs;
  const rows = batch * tokens;
  const around = surround(inputs, options, {
    positions: inputs.own('in.positions', 'i32', [rows]),
    attendFrom: options.attendFrom ? inputs.own('in.attend_from', 'i32', [rows]) : null,
    past: cache ? inputs.own('in.past', 'i32', [batch]) : null,
    cache,
  });
  const hidden = apply(inputs.own('in.ids', 'i32', [rows]), qwen3(model.config, around), at);
  if (logits !== 'none') {
    const wanted = logits === 'all' ? rows : logits;
    const head = linearInto(headWeight(model.config, around), logitsTensor(inputs, options, wanted));
    const chosen =
      logits === 'all' ? head : pipe(scope('rows', gatherRows(inputs.own('in.rows', 'i32', [wanted]))), head);
    // The scope is the head's; choosing rows is part of it.
    apply(hidden, scope('lm_head', chosen), at);
  }
  const graph = fuseAddNorm(at.finish(options.name ?? 'forward'));
  return lower(taps.length > 0 ? graph : prune(graph), { taps, prefix: options.prefix ?? '' });
}

function logitsTensor(inputs: Inputs, options: ForwardOptions, wanted: number): Tensor {
  const { vocabSize } = options.model.config;
  const into = options.logitsInto;
  if (!into) return inputs.own('out.logits', 'f32', [wanted, vocabSize]);
  if (into.row + wanted > into.rows)
    throw new Q4Error(
      'Q4510',
      `${wanted} rows of logits from row ${into.row} do not fit ${into.name} (${into.rows} rows)`,
    );
  return inputs.at.stored(
    { name: into.name, dtype: 'f32', shape: [into.rows, vocabSize], purpose: 'io' },
    { shape: [wanted, vocabSize], byteOffset: into.row * vocabSize * 4 },
  );
}
