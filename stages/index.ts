/** The registry: one line per stage. */
import type { Stage } from './context.js';
import { buildModel } from './build-model.js';
import { checkpoint } from './checkpoint.js';
import { infer } from './infer.js';
import { loadDat } from './load-dat.js';
import { parityCheck } from './parity-check.js';
import { train } from './train.js';

export type * from './context.js';

export const STAGES = [loadDat, buildModel, train, checkpoint, parityCheck, infer] as readonly Stage[];
