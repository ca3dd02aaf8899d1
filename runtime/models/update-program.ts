/**
 * One optimizer step on gradients that are complete: norm and clipping, AdamW on every master, and new NVFP4 codes.
 *
 * Tensors: loss f32 [1], hyper f32 [8], rng i32 [4] (read); stats f32 [4], partials f32 [P], amax f32 [Q], changed i32 [Q]
 * (written), P the parameters trained, Q those that are quantised. When the loss or the norm is not finite nothing but
 * `stats` (and scratch of the same bytes) changes.
 */
import { lower, type Lowered } from '../graph/lower.js';
import { adamw, gradStats, sumSquares } from '../graph/ops/optimizer.js';
import { fuseAdamwAmax } from '../graph/rewrites/fuse-adamw-amax.js';
import type { Tensor } from '../graph/types.js';
import type { Model, ModelParameter } from './model.js';
import { Inputs, type ProgramOptions } from './program-inputs.js';
import { recordAmax, recordQuantise, requantisationGroups } from './quantise-programs.js';
import { trainedBy, type Loss } from './train-program.js';

export interface UpdateProgramOptions {
  readonly model: Model;
  readonly device: ProgramOptions['device'];
  /** Clip the global norm to this; 0: never. */
  readonly maxGradNorm: number;
  /** Which loss made the gradients; see `trainedBy`. */
  readonly loss?: Loss | undefined;
  /** Which parameters decay. Default: matrices. */
  readonly decays?: ((parameter: ModelParameter) => boolean) | undefined;
  readonly lossTensor?: string | undefined;
  readonly name?: string | undefined;
}

export function updateProgram(options: UpdateProgramOptions): Lowered {
  const { model, device, maxGradNorm, decays = ({ decay }) => decay } = options;
  const inputs = new Inputs({ model, device, activation: 'f32' });
  const parameters = trainedBy(model, options.loss);
  const optimizer = (scope: string) => inputs.at.at(scope, 'optimizer');
  const stats = inputs.shared('stats', 'f32', [4]);
  const hyper = inputs.shared('hyper', 'f32', [8]);
  const rng = inputs.shared('rng', 'i32', [4]);
  const partials = inputs.shared('partials', 'f32', [Math.max(1, parameters.length)]);
  const stored = (tensor: ModelParameter['weight']): Tensor => inputs.at.stored(tensor);

  parameters.forEach(({ name, training }, slot) =>
    sumSquares(stored(training!.grad), slot, partials, optimizer(name)),
  );
  const loss = inputs.shared(options.lossTensor ?? 'loss', 'f32', [1]);
  gradStats(partials, loss, maxGradNorm, stats, optimizer('grad_norm'));

  const update = (parameter: ModelParameter): void => {
    const { master, m, v, grad } = parameter.training!;
    const operands = {
      grad: stored(grad),
      master: stored(master),
      m: stored(m),
      v: stored(v),
      stats,
      hyper,
      rng,
    };
    adamw(operands, decays(parameter), parameter.index, optimizer(parameter.name));
  };
  const trained = new Set(parameters);
  for (const parameter of parameters) if (parameter.slots === null) update(parameter);
  for (const group of requantisationGroups(model)) {
    const moving = group.filter((parameter) => trained.has(parameter));
    if (moving.length === 0) continue;
    moving.forEach(update);
    for (const parameter of group) recordAmax(model, parameter, inputs, optimizer(parameter.name));
    for (const parameter of group) recordQuantise(model, parameter, inputs, optimizer(parameter.name));
  }
  return lower(fuseAdamwAmax(inputs.at.finish(options.name ?? 'update')));
}
