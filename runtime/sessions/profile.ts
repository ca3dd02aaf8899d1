/** Where the time of a profiled run went. */
import type { OpTime } from '../engine/types.js';

/** Seconds by phase, in the order in which the phases ran. */
export function secondsByPhase(ops: readonly OpTime[]): Record<string, number> {
  const phases: Record<string, number> = {};
  for (const { phase, seconds } of ops) phases[phase] = (phases[phase] ?? 0) + seconds;
  return phases;
}

export interface ProfileRow {
  readonly op: string;
  readonly phase: string;
  readonly calls: number;
  readonly seconds: number;
  readonly share: number;
}

/** Seconds by op and phase, most first. */
export function profileTable(ops: readonly OpTime[]): ProfileRow[] {
  const total = ops.reduce((sum, { seconds }) => sum + seconds, 0);
  const rows = new Map<string, { op: string; phase: string; calls: number; seconds: number }>();
  for (const { op, phase, seconds } of ops) {
    const key = `${phase} ${op}`;
    const row = rows.get(key) ?? { op, phase, calls: 0, seconds: 0 };
    rows.set(key, { ...row, calls: row.calls + 1, seconds: row.seconds + seconds });
  }
  return [...rows.values()]
    .sort((a, b) => b.seconds - a.seconds)
    .map((row) => ({ ...row, share: total > 0 ? row.seconds / total : 0 }));
}
