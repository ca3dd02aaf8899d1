/** The registry: one line per stage. */
import type { Stage } from './context.js';

export type * from './context.js';

export const STAGES: readonly Stage[] = [];
