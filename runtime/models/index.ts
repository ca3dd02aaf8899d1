/** Qwen3 models: config, wiring, parameters, and the programs made from them. */
export { parseQwen3Config, type Qwen3Config } from './config.js';
export { decodeProgram, sampleProgram, type DecodeProgramOptions } from './decode-program.js';
export { forwardProgram, type ForwardOptions } from './forward-program.js';
export { initProgram, type InitProgramOptions } from './init-program.js';
export { cacheTensors, type CacheOptions } from './kv-cache.js';
export {
  defaultStorage,
  layOutModel,
  modelTensors,
  unmatchedPatterns,
  type Masters,
  type Model,
  type ModelOptions,
  type ModelParameter,
  type ScaleLevel,
  type Training,
  type WeightStorage,
} from './model.js';
export {
  listParameters,
  wiringFingerprint,
  wiringText,
  type Parameter,
  type ParameterKind,
} from './parameters.js';
export {
  countChangedProgram,
  dequantizeProgram,
  quantizeProgram,
  type WeightProgramOptions,
} from './quantise-programs.js';
export { blockOf, hiddenStateScopes } from './qwen3.js';
export { trainedBy, trainGraph, trainProgram, type Loss, type TrainProgramOptions } from './train-program.js';
export { updateProgram, type UpdateProgramOptions } from './update-program.js';
export type { ProgramOptions } from './program-inputs.js';
