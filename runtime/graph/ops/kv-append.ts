/** Appends rows to the key and value caches, in place. */
import { payloadBytes } from '../cost.js';
import type { Recorder } from '../recorder.js';
import type { OpSpec, Tensor } from '../types.js';

export const KV_APPEND: OpSpec = {
  name: 'kv_append',
  signature: 'k: act[N,W], v: act[N,W], past: i32[batch] -> k_cache: act[S,W], v_cache: act[S,W]',
  attrs: ['batch'],
  check: (view) => {
    const [rows, capacity, batch] = [
      view.inputs[0]!.shape[0]!,
      view.outputs[0]!.shape[0]!,
      view.attrs['batch']!,
    ];
    return rows % batch === 0 && capacity % batch === 0
      ? null
      : `${rows} and ${capacity} rows do not divide into a batch of ${batch}`;
  },
  modifies: () => [0, 1],
  // The rows alone move, not the caches.
  cost: (view) => ({ flops: 0, bytes: 2 * (payloadBytes(view.inputs[0]) + payloadBytes(view.inputs[1])) }),
};

export interface LayerCache {
  readonly k: Tensor;
  readonly v: Tensor;
}

/** k, v act [batch·T, kv], past i32 [batch] → into the caches act [batch·S, kv]. */
export function kvAppend(
  k: Tensor,
  v: Tensor,
  past: Tensor,
  batch: number,
  cache: LayerCache,
  at: Recorder,
): void {
  at.emit(KV_APPEND, [k, v, past], { attrs: { batch }, into: { k_cache: cache.k, v_cache: cache.v } });
}
