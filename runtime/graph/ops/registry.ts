/** Every op of native/core/backend.h by its name. */
import { Q4Error } from '../../errors.js';
import type { OpSpec } from '../types.js';
import { ADD } from './add.js';
import { ATTENTION, ATTENTION_BACKWARD } from './attention.js';
import { EMBEDDING, EMBEDDING_BACKWARD } from './embedding.js';
import { CAST, FILL, RANDOM_NORMAL } from './filling.js';
import { GATHER_ROWS } from './gather-rows.js';
import { HEAD_NORM_ROPE, HEAD_NORM_ROPE_BACKWARD } from './head-norm-rope.js';
import { KV_APPEND } from './kv-append.js';
import { L1_LOSS } from './l1-loss.js';
import { LINEAR, LINEAR_DGRAD, LINEAR_WGRAD } from './linear.js';
import { LINEAR_CROSS_ENTROPY } from './linear-cross-entropy.js';
import { AMAX, COUNT_CHANGED, DEQUANTIZE_NVFP4, QUANTIZE_NVFP4 } from './nvfp4.js';
import { ADAMW, ADAMW_AMAX, GRAD_STATS, SUM_SQUARES } from './optimizer.js';
import { ADD_RMS_NORM, RMS_NORM, RMS_NORM_BACKWARD } from './rms-norm.js';
import { INCREMENT, SAMPLE } from './sampling.js';
import { SWIGLU, SWIGLU_BACKWARD } from './swiglu.js';

const ALL: readonly OpSpec[] = [
  EMBEDDING,
  RMS_NORM,
  ADD_RMS_NORM,
  HEAD_NORM_ROPE,
  LINEAR,
  ATTENTION,
  KV_APPEND,
  SWIGLU,
  ADD,
  GATHER_ROWS,
  LINEAR_CROSS_ENTROPY,
  L1_LOSS,
  EMBEDDING_BACKWARD,
  RMS_NORM_BACKWARD,
  HEAD_NORM_ROPE_BACKWARD,
  LINEAR_DGRAD,
  LINEAR_WGRAD,
  ATTENTION_BACKWARD,
  SWIGLU_BACKWARD,
  SUM_SQUARES,
  GRAD_STATS,
  ADAMW,
  ADAMW_AMAX,
  AMAX,
  QUANTIZE_NVFP4,
  DEQUANTIZE_NVFP4,
  COUNT_CHANGED,
  FILL,
  CAST,
  RANDOM_NORMAL,
  SAMPLE,
  INCREMENT,
];

export const OPS: ReadonlyMap<string, OpSpec> = new Map(ALL.map((spec) => [spec.name, spec]));

/** @throws Q4Error Q4510 for a name that the contract does not have. */
export function opSpec(name: string): OpSpec {
  const spec = OPS.get(name);
  if (!spec) throw new Q4Error('Q4510', `unknown op '${name}'`);
  return spec;
}
