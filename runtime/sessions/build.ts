/** Turns loaded weights, or nothing but a config and a seed, into a model that answers and, with masters, trains. */
import type { Engine, Store } from '../engine/types.js';
import { Q4Error } from '../errors.js';
import { lower } from '../graph/lower.js';
import { cast } from '../graph/ops/filling.js';
import { Recorder } from '../graph/recorder.js';
import type { Activation, DType } from '../graph/types.js';
import { initProgram } from '../models/init-program.js';
import {
  layOutModel,
  type Masters,
  type Model,
  type ScaleLevel,
  type WeightStorage,
} from '../models/model.js';
import { dequantizeProgram, quantizeProgram } from '../models/quantise-programs.js';
import { runOnce } from './host.js';
import type { LoadedModel, Weights } from './model.js';

export interface BuildOptions {
  readonly masters: Masters;
  readonly freeze: readonly string[];
  readonly globalScale: 'keep' | ScaleLevel;
  readonly sharedGlobalScale: boolean;
}

/** The layout of a model whose weights are stored like this. */
export function layOut(
  config: Weights['config'],
  storage: ReadonlyMap<string, WeightStorage>,
  options: BuildOptions,
): Model {
  const { masters, freeze, globalScale, sharedGlobalScale } = options;
  const wanted = new Map<string, WeightStorage>();
  for (const [name, stored] of storage) {
    const quantised = stored.dtype === 'nvfp4' && globalScale !== 'keep';
    wanted.set(name, quantised ? { ...stored, globalScale } : stored);
  }
  return layOutModel({ config, storage: wanted, masters, freeze, sharedGlobalScale });
}

/** True when the codes must be made again from masters: other scales than the file's are asked for. */
const rescales = (weights: Weights, options: BuildOptions): boolean =>
  options.sharedGlobalScale ||
  (options.globalScale !== 'keep' &&
    [...weights.origin.values()].some(
      ({ storage }) => storage.dtype === 'nvfp4' && storage.globalScale !== options.globalScale,
    ));

/** Gives a tensor another dtype, in its place. */
async function convert(engine: Engine, store: Store, name: string, dtype: DType): Promise<void> {
  const { shape, dtype: from } = store.info(name);
  const old = `converted.${name}`;
  store.rename(name, old);
  const at = Recorder.start(engine.device.kind, 'f32');
  const source = at.stored({ name: old, dtype: from, shape, purpose: 'weights' });
  cast(source, at.stored({ name, dtype, shape, purpose: 'weights' }), at);
  await runOnce(engine, store, lower(at.finish('convert')));
  store.free(old);
}

/** Stores that a model was made of. */
const taken = new WeakSet<Store>();

/**
 * The weights' store becomes the model's: masters are made from the codes, plain weights that train become masters.
 * @throws Q4Error Q4502 when they are a model already: training one of two would change both.
 */
export async function buildFromWeights(
  engine: Engine,
  weights: Weights,
  options: BuildOptions,
  activation: Activation,
): Promise<LoadedModel> {
  const { store, config, configText, origin, text, path } = weights;
  if (taken.has(store))
    throw new Q4Error('Q4502', 'these weights are a model already', {
      hint: 'a second model needs a load-dat stage of its own',
    });
  taken.add(store);
  const layout = layOut(config, new Map([...origin].map(([name, { storage }]) => [name, storage])), options);
  for (const { weight } of layout.parameters)
    if (store.info(weight.name).dtype !== weight.dtype)
      await convert(engine, store, weight.name, weight.dtype);
  if (layout.requantised.length > 0) {
    const device = engine.device.kind;
    await runOnce(engine, store, dequantizeProgram({ model: layout, device }));
    if (rescales(weights, options)) await runOnce(engine, store, quantizeProgram({ model: layout, device }));
  }
  return { layout, configText, origin, store, activation, text, path, dispose: () => store.dispose() };
}

/** A model with random weights. */
export async function buildFromSeed(
  engine: Engine,
  layout: Model,
  random: { readonly seed: number; readonly std: number },
  rest: Pick<LoadedModel, 'configText' | 'text' | 'activation'>,
): Promise<LoadedModel> {
  const store = engine.createStore();
  try {
    for (const { weight } of layout.parameters) store.allocate(weight.name, weight.dtype, weight.shape);
    await runOnce(engine, store, initProgram({ model: layout, device: engine.device.kind, ...random }));
  } catch (error) {
    store.dispose();
    throw error;
  }
  const origin: LoadedModel['origin'] = new Map(
    layout.parameters.map(({ name, storage }) => [
      name,
      { type: storage.dtype === 'nvfp4' ? 'u8' : 'f32', storage },
    ]),
  );
  return { ...rest, layout, origin, store, path: null, dispose: () => store.dispose() };
}
