/**
 * How checkpoints in safetensors spell an NVFP4 matrix `X.weight` of shape [out, in]. Sources: NVIDIA Model-Optimizer
 * (modelopt/torch/export, modelopt/torch/quantization/qtensor/nvfp4_tensor.py) and compressed-tensors
 * (compressors/nvfp4/base.py, entrypoints/convert/converters/modelopt_nvfp4.py).
 *
 *                        ModelOpt                        compressed-tensors
 *   codes, u8 [out,in/2] X.weight                        X.weight_packed
 *   block scales, e4m3   X.weight_scale [out,in/16]      X.weight_scale [out,in/16]
 *   global scale, f32    X.weight_scale_2 [], multiplier X.weight_global_scale [1], divisor
 *   activations, f32     X.input_scale [], multiplier    X.input_global_scale [1], divisor
 *
 * In both, a byte holds element 2j in its low half, and scales are row-major.
 */

export type QuantisedFormat = 'modelopt' | 'compressed-tensors';

export interface PartNames {
  readonly codes: string;
  readonly scales: string;
  readonly global: string;
  readonly activation: string;
}

/** `model.layers.0.mlp.up_proj` of `model.layers.0.mlp.up_proj.weight`. */
export const moduleOf = (parameter: string): string => parameter.replace(/\.weight$/, '');

export function partNames(format: QuantisedFormat, parameter: string): PartNames {
  const module = moduleOf(parameter);
  return format === 'modelopt'
    ? {
        codes: `${module}.weight`,
        scales: `${module}.weight_scale`,
        global: `${module}.weight_scale_2`,
        activation: `${module}.input_scale`,
      }
    : {
        codes: `${module}.weight_packed`,
        scales: `${module}.weight_scale`,
        global: `${module}.weight_global_scale`,
        activation: `${module}.input_global_scale`,
      };
}

/** Tensors that belong to a quantised checkpoint but not to a `.dat`: they are kept beside it for exports. */
export const isExtra = (name: string): boolean =>
  /\.(?:input_scale|input_global_scale|weight_global_scale|k_scale|v_scale)$/.test(name);

const { fround } = Math;

/** The multiplier that a divisor stands for, and the reverse: one division, rounded once. */
export const reciprocal = (scale: number): number => fround(1 / scale);

/**
 * The divisor that reads back as exactly this multiplier. fp32 has multipliers that are the reciprocal of no fp32 number
 * (about one in six): null for those. Where there is one it is the reciprocal, rounded; its neighbours never do better.
 */
export function exactDivisor(multiplier: number): number | null {
  const divisor = reciprocal(multiplier);
  return reciprocal(divisor) === multiplier ? divisor : null;
}
