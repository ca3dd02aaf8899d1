/**
 * Random weights: matrices (the embedding and the head among them) are normal with one standard deviation, norms are 1.
 * Each parameter has its own random stream, so that nothing depends on what is frozen or how weights are stored.
 */
import { lower, type Lowered } from '../graph/lower.js';
import { cast, fill, randomNormal } from '../graph/ops/filling.js';
import { amax, quantize } from '../graph/ops/nvfp4.js';
import type { Recorder } from '../graph/recorder.js';
import type { Tensor } from '../graph/types.js';
import type { ModelParameter } from './model.js';
import { Inputs } from './program-inputs.js';
import {
  recordAmax,
  recordQuantise,
  requantisationGroups,
  type WeightProgramOptions,
} from './quantise-programs.js';

export interface InitProgramOptions extends WeightProgramOptions {
  /** A whole number below 2^53. */
  readonly seed: number;
  /** Standard deviation of the matrices. */
  readonly std: number;
}

export function initProgram(options: InitProgramOptions): Lowered {
  const { model, seed, std } = options;
  const inputs = new Inputs({ ...options, activation: 'f32' });
  const at = (scope: string): Recorder => inputs.at.at(scope, 'optimizer');
  for (const parameter of model.parameters) {
    const target = inputs.at.stored(parameter.training?.master ?? parameter.weight);
    if (parameter.kind === 'norm') fill(1, target, at(parameter.name));
    else fillMatrix(parameter, target, { seed, std }, at(parameter.name));
  }
  for (const group of requantisationGroups(model)) {
    for (const parameter of group) recordAmax(model, parameter, inputs, at(parameter.name));
    for (const parameter of group) recordQuantise(model, parameter, inputs, at(parameter.name));
  }
  return lower(inputs.at.finish(options.name ?? 'init'));
}

function fillMatrix(
  parameter: ModelParameter,
  target: Tensor,
  random: { seed: number; std: number },
  at: Recorder,
): void {
  const { shape, index, storage } = parameter;
  if (target.dtype === 'f32') return randomNormal(random.seed, index, random.std, target, at);
  const drawn = at.arena(`${parameter.name}.drawn`, { dtype: 'f32', shape });
  randomNormal(random.seed, index, random.std, drawn, at);
  if (target.dtype !== 'nvfp4') return cast(drawn, target, at);
  // A frozen NVFP4 weight has no master and no slots: it is quantised by itself, straight from what was drawn.
  const changed = at.arena(`${parameter.name}.changed`, { dtype: 'i32', shape: [1] });
  fill(0, changed, at);
  const twoLevel = storage.globalScale === 'two_level';
  const largest = twoLevel ? at.arena(`${parameter.name}.amax`, { dtype: 'f32', shape: [1] }) : null;
  if (largest) {
    fill(0, largest, at);
    amax(drawn, 0, largest, at);
  }
  const slots = { begin: 0, end: twoLevel ? 1 : 0, changed: 0 };
  quantize({ master: drawn, amax: largest, weight: target, changed }, slots, at);
}
