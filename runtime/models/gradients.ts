/** In which dtype gradients wait for the update. */
import type { Activation } from '../graph/types.js';
import type { Model, ModelParameter } from './model.js';

/** auto: bf16 for projections where that loses nothing to a sum; fp32: always fp32. */
export type GradientDtype = 'auto' | 'fp32';

/**
 * The model with the gradients that a training run makes. A projection's gradient is one product of bf16 matrices,
 * summed in fp32 and rounded once: bf16 halves three passes over it. What is added to (several micro batches, the head's
 * chunks of rows, the rows of the embedding) or small (norms) stays fp32, and so does everything of fp32 activations.
 */
export function withGradients(
  model: Model,
  options: {
    readonly gradients: GradientDtype;
    readonly activation: Activation;
    readonly accumulates: boolean;
  },
): Model {
  const { gradients, activation, accumulates } = options;
  if (gradients === 'fp32' || activation === 'f32' || accumulates) return model;
  const narrowed = new Map(model.parameters.map((parameter) => [parameter, inBf16(parameter)]));
  const all = (parameters: readonly ModelParameter[]): ModelParameter[] =>
    parameters.map((parameter) => narrowed.get(parameter)!);
  const { parameters, trainable, requantised } = model;
  return {
    ...model,
    parameters: all(parameters),
    trainable: all(trainable),
    requantised: all(requantised),
  };
}

function inBf16(parameter: ModelParameter): ModelParameter {
  const { kind, training } = parameter;
  if (kind !== 'projection' || !training) return parameter;
  return { ...parameter, training: { ...training, grad: { ...training.grad, dtype: 'bf16' } } };
}
