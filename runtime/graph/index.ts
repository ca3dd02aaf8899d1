/** The graph: symbolic tensors, operators, gradients, rewrites, lowering, and what is told about programs. */
export type * from './types.js';
export { apply, fanout, layers, merge, pipe, residual, scope, type Wire } from './combinators.js';
export { canonicalText, fnv1a64 } from './fingerprint.js';
export { differentiate, type DifferentiateOptions } from './gradient.js';
export { lower, type Lowered, type LowerOptions } from './lower.js';
export { planMemory, unionOfTensors, type MemoryPlan } from './memory-plan.js';
export { OPS, opSpec } from './ops/registry.js';
export { matches } from './patterns.js';
export { printProgram } from './print.js';
export { Recorder } from './recorder.js';
export { fuseAddNorm } from './rewrites/fuse-add-norm.js';
export { prune } from './rewrites/prune.js';
export { recomputeBlocks } from './rewrites/recompute.js';
export { opCosts, summarise, type OpTotal, type ProgramSummary } from './summary.js';
