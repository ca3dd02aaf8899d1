/**
 * One micro batch: forward, loss and gradients; or the loss alone, for evaluation.
 *
 * Inputs (names after the prefix): in.ids, in.positions, in.attend_from i32 [N]; in.labels i32 [N], the token that should
 * follow each row (below 0: does not count); for the scalar loss in.target f32 [N,H]; in.loss_scale f32 [1], 1 over the
 * counted tokens (or elements) of the whole step. Outputs: the loss f32 [1], and grad.<parameter> f32.
 */
import { apply } from '../graph/combinators.js';
import { differentiate } from '../graph/gradient.js';
import { lower, type Lowered } from '../graph/lower.js';
import { l1Loss } from '../graph/ops/l1-loss.js';
import { linearCrossEntropy } from '../graph/ops/linear-cross-entropy.js';
import { fuseAddNorm } from '../graph/rewrites/fuse-add-norm.js';
import { recomputeBlocks } from '../graph/rewrites/recompute.js';
import type { Graph } from '../graph/types.js';
import { surround } from './forward-program.js';
import type { Model, ModelParameter } from './model.js';
import { Inputs, type ProgramOptions } from './program-inputs.js';
import { blockOf, headWeight, qwen3 } from './qwen3.js';

/** `scalar` is the predecessor's debugging loss: mean |hidden − target| after the last norm. */
export type Loss = 'cross_entropy' | 'scalar';

export interface TrainProgramOptions extends ProgramOptions {
  readonly batch: number;
  readonly tokens: number;
  readonly loss?: Loss | undefined;
  /** Add to the loss and the gradients of earlier micro batches, or overwrite them. */
  readonly accumulate: boolean;
  /** Drop what a decoder layer made inside and make it again for its backward pass. Default none. */
  readonly recompute?: 'none' | 'block' | undefined;
  /** false: the loss alone. Default true. */
  readonly gradients?: boolean | undefined;
  /** The loss's tensor, not prefixed: grad_stats reads it. Default `loss`. */
  readonly lossTensor?: string | undefined;
  readonly taps?: readonly string[] | undefined;
  readonly name?: string | undefined;
}

/** Parameters that a loss gives gradients to: the scalar loss never reaches a head of its own. */
export const trainedBy = (model: Model, loss: Loss = 'cross_entropy'): readonly ModelParameter[] =>
  model.trainable.filter(({ kind }) => loss === 'cross_entropy' || kind !== 'head');

/** The graph before lowering, for tests and tools. */
export function trainGraph(options: TrainProgramOptions): Graph {
  const {
    model,
    batch,
    tokens,
    loss = 'cross_entropy',
    accumulate,
    recompute = 'none',
    gradients = true,
  } = options;
  const inputs = new Inputs(options);
  const { at } = inputs;
  const rows = batch * tokens;
  const around = surround(inputs, options, {
    positions: inputs.own('in.positions', 'i32', [rows]),
    attendFrom: inputs.own('in.attend_from', 'i32', [rows]),
    past: null,
  });
  const x = apply(inputs.own('in.ids', 'i32', [rows]), qwen3(model.config, around), at);
  const scale = inputs.own('in.loss_scale', 'f32', [1]);
  const total = inputs.shared(options.lossTensor ?? 'loss', 'f32', [1]);
  if (loss === 'cross_entropy') {
    const labels = inputs.own('in.labels', 'i32', [rows]);
    const weight = headWeight(model.config, around);
    linearCrossEntropy({ x, weight, labels, scale, loss: total }, accumulate, at.at('lm_head', 'loss'));
  } else {
    const target = inputs.own('in.target', 'f32', [rows, model.config.hiddenSize]);
    l1Loss({ x, target, scale, loss: total }, accumulate, at.at('loss', 'loss'));
  }
  const name = options.name ?? (gradients ? `train-${accumulate ? 'accumulate' : 'overwrite'}` : 'evaluate');
  const forward = fuseAddNorm(at.finish(name));
  if (!gradients) return forward;
  const targets = new Map(
    trainedBy(model, loss).map(({ weight, training }) => [weight.name, training!.grad]),
  );
  const differentiated = differentiate(forward, { gradients: targets, accumulate });
  return recompute === 'block' ? recomputeBlocks(differentiated, blockOf) : differentiated;
}

/** @throws Q4Error Q4515 for a tap that names nothing. */
export const trainProgram = (options: TrainProgramOptions): Lowered =>
  lower(trainGraph(options), { taps: options.taps ?? [], prefix: options.prefix ?? '' });
