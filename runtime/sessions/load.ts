/** Brings the parameters of a weight file into a store. */
import type { Engine, FileIndex, LoadOptions, LoadResult, Store } from '../engine/types.js';
import type { Qwen3Config } from '../models/config.js';
import { layOutModel } from '../models/model.js';
import { listParameters } from '../models/parameters.js';
import type { LoadedModel } from './model.js';
import { matchWeights, type MatchedWeights } from './weight-file.js';

/** Takes memory for every parameter and streams the file into it; norms become f32, the rest stays as in the file. */
export async function loadWeights(
  engine: Engine,
  index: FileIndex,
  matched: MatchedWeights,
  options: LoadOptions = {},
): Promise<{ store: Store; loaded: LoadResult }> {
  const store = engine.createStore();
  try {
    for (const { name, shape } of listParameters(matched.config))
      store.allocate(name, matched.origin.get(name)!.storage.dtype, shape);
    for (const name of matched.singleLevel) store.write(name, Float32Array.of(1), 'global_scale');
    return { store, loaded: await engine.files.load(store, index, matched.items, options) };
  } catch (error) {
    store.dispose();
    throw error;
  }
}

/** A model without masters, straight from a `.dat`, beside one that is in use. */
export async function loadBeside(
  engine: Engine,
  model: LoadedModel,
  path: string,
  config: Qwen3Config = model.layout.config,
): Promise<LoadedModel> {
  const index = await engine.files.indexDat(path);
  const matched = matchWeights(config, index, true);
  const { store } = await loadWeights(engine, index, matched);
  const storage = new Map([...matched.origin].map(([name, origin]) => [name, origin.storage]));
  const layout = layOutModel({ config: matched.config, storage, masters: 'none' });
  return { ...model, layout, origin: matched.origin, store, path, dispose: () => store.dispose() };
}

/** The same weights on another engine, without masters. Activations there are f32. */
export function copyTo(engine: Engine, model: LoadedModel): LoadedModel {
  const storage = new Map(model.layout.parameters.map(({ name, storage }) => [name, storage]));
  const layout = layOutModel({ config: model.layout.config, storage, masters: 'none' });
  const store = engine.createStore();
  try {
    for (const { weight } of layout.parameters) {
      const { name, dtype, shape } = weight;
      store.allocate(name, dtype, shape);
      const parts = dtype === 'nvfp4' ? (['qdata', 'scale', 'global_scale'] as const) : (['data'] as const);
      for (const part of parts) store.write(name, model.store.read(name, part), part);
    }
  } catch (error) {
    store.dispose();
    throw error;
  }
  return { ...model, layout, store, activation: 'f32', dispose: () => store.dispose() };
}
