/** Programs between masters and codes: quantise, dequantise, and counting codes that differ. */
import { lower, type Lowered } from '../graph/lower.js';
import { amax, countChanged, dequantize, quantize } from '../graph/ops/nvfp4.js';
import type { Recorder } from '../graph/recorder.js';
import type { DeviceKind, Tensor } from '../graph/types.js';
import type { Model, ModelParameter } from './model.js';
import { Inputs } from './program-inputs.js';

export interface WeightProgramOptions {
  readonly model: Model;
  readonly device: DeviceKind;
  readonly name?: string | undefined;
}

const vectorLength = (model: Model): number => Math.max(1, model.requantised.length);
const isTwoLevel = (parameter: ModelParameter): boolean => parameter.storage.globalScale === 'two_level';

/** Parameters whose scales depend on each other: alone, or a fusion group with a shared global scale. */
export function requantisationGroups(model: Model): ModelParameter[][] {
  const groups = new Map<number, ModelParameter[]>();
  for (const parameter of model.requantised) {
    const begin = parameter.slots!.begin;
    groups.set(begin, [...(groups.get(begin) ?? []), parameter]);
  }
  return [...groups.values()];
}

/** amax[own slot] of the master, where the scale needs it. */
export function recordAmax(model: Model, parameter: ModelParameter, inputs: Inputs, at: Recorder): void {
  if (!isTwoLevel(parameter)) return;
  const out = inputs.shared('amax', 'f32', [vectorLength(model)]);
  amax(inputs.at.stored(parameter.training!.master), parameter.slots!.own, out, at);
}

/** New codes from the master, into the compute weight or into `weight`; changed[own slot] counts. */
export function recordQuantise(
  model: Model,
  parameter: ModelParameter,
  inputs: Inputs,
  at: Recorder,
  weight: Tensor = inputs.at.stored(parameter.weight),
): void {
  const twoLevel = isTwoLevel(parameter);
  const { own, begin, end } = parameter.slots!;
  const operands = {
    master: inputs.at.stored(parameter.training!.master),
    amax: twoLevel ? inputs.shared('amax', 'f32', [vectorLength(model)]) : null,
    weight,
    changed: inputs.shared('changed', 'i32', [vectorLength(model)]),
  };
  quantize(operands, { begin: twoLevel ? begin : 0, end: twoLevel ? end : 0, changed: own }, at);
}

/** Codes of all weights that have masters. With `into`, they go to tensors `<into><name>` instead of the weights. */
export function quantizeProgram(
  options: WeightProgramOptions & { readonly into?: string | undefined },
): Lowered {
  const { model, device, into } = options;
  const inputs = new Inputs({ model, device, activation: 'f32' });
  const at = (scope: string): Recorder => inputs.at.at(scope, 'optimizer');
  for (const group of requantisationGroups(model)) {
    for (const parameter of group) recordAmax(model, parameter, inputs, at(parameter.name));
    for (const parameter of group) {
      const { weight, name } = parameter;
      const target = into === undefined ? weight : { ...weight, name: into + name };
      recordQuantise(model, parameter, inputs, at(name), inputs.at.stored(target));
    }
  }
  return lower(inputs.at.finish(options.name ?? 'quantize'));
}

/** Masters from the codes: where training starts when a file holds quantised weights alone. */
export function dequantizeProgram(options: WeightProgramOptions): Lowered {
  const inputs = new Inputs({ ...options, activation: 'f32' });
  for (const { name, weight, training } of options.model.requantised)
    dequantize(inputs.at.stored(weight), inputs.at.stored(training!.master), inputs.at.at(name, 'optimizer'));
  return lower(inputs.at.finish(options.name ?? 'dequantize'));
}

/** changed[slot] = codes of each weight that differ from those of `<against><name>`; slots as in `requantised`. */
export function countChangedProgram(options: WeightProgramOptions & { readonly against: string }): Lowered {
  const { model, against } = options;
  const inputs = new Inputs({ ...options, activation: 'f32' });
  const out = inputs.shared('changed', 'i32', [vectorLength(model)]);
  model.requantised.forEach(({ name, weight }, slot) => {
    const other = inputs.at.stored({ ...weight, name: against + name });
    countChanged(inputs.at.stored(weight), other, slot, out, inputs.at.at(name, 'optimizer'));
  });
  return lower(inputs.at.finish(options.name ?? 'count-changed'));
}
