/**
 * A model as it lies in the store: for every parameter the compute weight, and for those that train the master, the
 * moments and the gradient.
 *
 * Names: the weight `X` is called as in Hugging Face files; beside it stand `master.X`, `m.X`, `v.X` and `grad.X`. A
 * plain parameter that trains is its own master: `X` is updated in place and there is no `master.X`.
 */
import { Q4Error } from '../errors.js';
import { BLOCK, type DType } from '../program.js';
import { matches } from '../graph/patterns.js';
import type { StoreTensor } from '../graph/types.js';
import type { Qwen3Config } from './config.js';
import { listParameters, type Parameter } from './parameters.js';

/** Scales of an NVFP4 weight: block scales under an fp32 scale of the tensor, or block scales alone. */
export type ScaleLevel = 'two_level' | 'none';

/** How a parameter's compute weight is stored. */
export interface WeightStorage {
  readonly dtype: DType;
  /** Of nvfp4 weights; plain ones have 'none'. */
  readonly globalScale: ScaleLevel;
}

export type Masters = 'fp32' | 'bf16' | 'none';

export interface Training {
  /** What the optimizer updates; the compute weight itself where that is plain. */
  readonly master: StoreTensor;
  readonly m: StoreTensor;
  readonly v: StoreTensor;
  readonly grad: StoreTensor;
}

export interface ModelParameter extends Parameter {
  readonly storage: WeightStorage;
  readonly weight: StoreTensor;
  /** null: frozen, or the model only answers. */
  readonly training: Training | null;
  /** Slots of `amax` whose largest is this weight's amax: its own, or its group's. Null when it is not requantised. */
  readonly slots: { readonly own: number; readonly begin: number; readonly end: number } | null;
}

export interface Model {
  readonly config: Qwen3Config;
  readonly masters: Masters;
  readonly parameters: readonly ModelParameter[];
  /** Those that train, in order; a position in this list is the parameter's slot in `partials`. */
  readonly trainable: readonly ModelParameter[];
  /** Those that are quantised from masters, groups side by side; a position is the slot in `amax` and `changed`. */
  readonly requantised: readonly ModelParameter[];
}

export interface ModelOptions {
  readonly config: Qwen3Config;
  /** Storage of every parameter, by name (from a file, or `defaultStorage`). */
  readonly storage: ReadonlyMap<string, WeightStorage>;
  readonly masters: Masters;
  /** Name patterns (* stands for any characters) of parameters that do not train. */
  readonly freeze?: readonly string[];
  /** One global scale for each fusion group. */
  readonly sharedGlobalScale?: boolean;
}

/**
 * Storage of a model that is made here: projections and the separate head in NVFP4 when `quantize` is set; norms in f32;
 * everything else in `plain`.
 */
export function defaultStorage(
  config: Qwen3Config,
  options: { quantize: boolean; plain: 'f32' | 'bf16' | 'f16'; globalScale?: ScaleLevel },
): Map<string, WeightStorage> {
  const { quantize, plain, globalScale = 'two_level' } = options;
  const storage = (parameter: Parameter): WeightStorage => {
    if (parameter.kind === 'norm') return { dtype: 'f32', globalScale: 'none' };
    if (quantize && parameter.kind !== 'embedding') return { dtype: 'nvfp4', globalScale };
    return { dtype: plain, globalScale: 'none' };
  };
  return new Map(listParameters(config).map((parameter) => [parameter.name, storage(parameter)]));
}

/** Patterns of `freeze` that name no parameter: mistakes to be told. */
export const unmatchedPatterns = (config: Qwen3Config, patterns: readonly string[]): string[] => {
  const names = listParameters(config).map((parameter) => parameter.name);
  return patterns.filter((pattern) => !names.some((name) => matches(pattern, name)));
};

/**
 * Dtype of a compute weight: norms are always f32; a plain parameter that trains is its own master and has the master's
 * dtype; anything else stays as its storage says.
 */
function weightDtype(parameter: Parameter, storage: WeightStorage, masters: Masters, trains: boolean): DType {
  if (parameter.kind === 'norm') return 'f32';
  if (storage.dtype === 'nvfp4' || !trains) return storage.dtype;
  return masters === 'bf16' ? 'bf16' : 'f32';
}

const plainOf = (masters: Masters): DType => (masters === 'bf16' ? 'bf16' : 'f32');

/** @throws Q4Error Q4510 when the storage lacks a parameter or stores one as it cannot be. */
export function layOutModel(options: ModelOptions): Model {
  const { config, masters, freeze = [] } = options;
  const laidOut = listParameters(config).map((parameter) => {
    const storage = options.storage.get(parameter.name);
    if (!storage) throw new Q4Error('Q4510', `the storage of ${parameter.name} is not known`);
    checkStorage(parameter, storage);
    const trains = masters !== 'none' && !freeze.some((pattern) => matches(pattern, parameter.name));
    return layOutParameter(parameter, storage, masters, trains);
  });
  const requantised = orderedByGroup(
    laidOut.filter(({ training, storage }) => training && storage.dtype === 'nvfp4'),
  );
  const slots = new Map(requantised.map((parameter, own) => [parameter.name, own]));
  const parameters = laidOut.map((parameter): ModelParameter => {
    const own = slots.get(parameter.name);
    if (own === undefined) return { ...parameter, slots: null };
    const shared = options.sharedGlobalScale && parameter.group !== null;
    const group = shared ? requantised.filter(({ group }) => group === parameter.group) : [parameter];
    const begin = Math.min(...group.map(({ name }) => slots.get(name)!));
    return { ...parameter, slots: { own, begin, end: begin + group.length } };
  });
  const byName = new Map(parameters.map((parameter) => [parameter.name, parameter]));
  return {
    config,
    masters,
    parameters,
    trainable: parameters.filter((parameter) => parameter.training !== null),
    requantised: requantised.map(({ name }) => byName.get(name)!),
  };
}

function layOutParameter(
  parameter: Parameter,
  storage: WeightStorage,
  masters: Masters,
  trains: boolean,
): Omit<ModelParameter, 'slots'> {
  const { name, shape } = parameter;
  const dtype = weightDtype(parameter, storage, masters, trains);
  const quantised = dtype === 'nvfp4';
  const ownMaster = trains && !quantised;
  const weight: StoreTensor = { name, dtype, shape, purpose: ownMaster ? 'masters' : 'weights' };
  if (!trains) return { ...parameter, storage: { ...storage, dtype }, weight, training: null };
  const f32 = (prefix: string, purpose: StoreTensor['purpose']): StoreTensor => ({
    name: `${prefix}.${name}`,
    dtype: 'f32',
    shape,
    purpose,
  });
  const master: StoreTensor = quantised ? { ...f32('master', 'masters'), dtype: plainOf(masters) } : weight;
  const training = { master, m: f32('m', 'moments'), v: f32('v', 'moments'), grad: f32('grad', 'gradients') };
  return { ...parameter, storage: { ...storage, dtype }, weight, training };
}

function checkStorage({ name, shape, kind }: Parameter, { dtype }: WeightStorage): void {
  const refuse = (problem: string): never => {
    throw new Q4Error('Q4510', `${name} cannot be stored as ${dtype}: ${problem}`);
  };
  if (dtype === 'i32' || dtype === 'u8') refuse('weights are floating-point numbers');
  if (dtype !== 'nvfp4') return;
  if (kind === 'norm' || kind === 'embedding') refuse(`the ${kind} is read row by row, as plain numbers`);
  if (shape[1]! % BLOCK !== 0) refuse(`its inputs (${shape[1]}) do not divide into blocks of ${BLOCK}`);
}

/** Members of a group side by side, where the first of them stands. */
function orderedByGroup<P extends Parameter>(parameters: readonly P[]): P[] {
  const ordered: P[] = [];
  for (const parameter of parameters) {
    if (ordered.includes(parameter)) continue;
    if (parameter.group === null) ordered.push(parameter);
    else ordered.push(...parameters.filter(({ group }) => group === parameter.group));
  }
  return ordered;
}

/** Tensors of the store that hold the model itself: weights, and with `state` masters and moments (not gradients). */
export function modelTensors(model: Model, state = true): StoreTensor[] {
  const tensors = new Map<string, StoreTensor>();
  for (const { weight, training } of model.parameters)
    for (const tensor of [weight, ...(training && state ? [training.master, training.m, training.v] : [])])
      tensors.set(tensor.name, tensor);
  return [...tensors.values()];
}
