/** The registry: one line per stage. */
import type { Stage } from './context.js';
import { buildModel } from './build-model.js';
import { checkpoint } from './checkpoint.js';
import { exportWeights } from './export-weights.js';
import { importWeights } from './import-weights.js';
import { infer } from './infer.js';
import { loadDat } from './load-dat.js';
import { parityCheck } from './parity-check.js';
import { train } from './train.js';

export type * from './context.js';

export const STAGES = [
  importWeights,
  loadDat,
  buildModel,
  train,
  checkpoint,
  exportWeights,
  parityCheck,
  infer,
] as readonly Stage[];
