/** Key and value caches in the store: `cache.k.<layer>` and `cache.v.<layer>`, act [rows·capacity, kv_heads·D]. */
import { elementCount, type DType } from '../program.js';
import type { LayerCache } from '../graph/ops/kv-append.js';
import type { Recorder } from '../graph/recorder.js';
import type { Activation, StoreTensor } from '../graph/types.js';
import type { Qwen3Config } from './config.js';

export interface CacheOptions {
  /** Tokens that one row can hold (S). */
  readonly capacity: number;
  /** Rows of the whole cache. */
  readonly rows: number;
  /** The first row that a program works on; it works on as many as its batch. Default 0. */
  readonly row?: number | undefined;
  /** Put before the tensors' names. Default: nothing. */
  readonly prefix?: string | undefined;
}

const ELEMENT_BYTES: Partial<Record<DType, number>> = { f32: 4, bf16: 2 };

const cacheTensor = (
  part: 'k' | 'v',
  layer: number,
  config: Qwen3Config,
  activation: Activation,
  cache: CacheOptions,
): StoreTensor => ({
  name: `${cache.prefix ?? ''}cache.${part}.${layer}`,
  dtype: activation,
  shape: [cache.rows * cache.capacity, config.numKeyValueHeads * config.headDim],
  purpose: 'cache',
});

/** The rows of one layer's cache that a program of `batch` rows works on. */
export function layerCache(
  layer: number,
  batch: number,
  config: Qwen3Config,
  cache: CacheOptions,
  at: Recorder,
): LayerCache {
  const view = (part: 'k' | 'v') => {
    const whole = cacheTensor(part, layer, config, at.activation, cache);
    const width = whole.shape[1]!;
    const before = elementCount([cache.row ?? 0, cache.capacity, width]);
    const byteOffset = before * ELEMENT_BYTES[at.activation]!;
    return at.stored(whole, { shape: [batch * cache.capacity, width], byteOffset });
  };
  return { k: view('k'), v: view('v') };
}

/** All tensors of a cache. */
export const cacheTensors = (
  config: Qwen3Config,
  activation: Activation,
  cache: CacheOptions,
): StoreTensor[] =>
  Array.from({ length: config.numHiddenLayers }, (_, layer) => [
    cacheTensor('k', layer, config, activation, cache),
    cacheTensor('v', layer, config, activation, cache),
  ]).flat();
