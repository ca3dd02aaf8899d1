import { join } from 'node:path';

import { loadPipeline } from '../config/pipeline.js';
import { emptyState, reduce } from '../events/run-state.js';
import { bytesText } from '../machine.js';
import { findUnfinished, makePlan } from '../supervisor/run-directory.js';
import { selectStages } from '../supervisor/selection.js';
import { deviceText } from '../supervisor/status-text.js';
import { shortPath } from '../error-text.js';
import type { Command } from './command.js';
import { collect } from './jobs.js';

export const plan: Command = async (context) => {
  const { flags, terminal } = context;
  const { bold, dim } = terminal.colors;
  const pipeline = loadPipeline(context.positionals[0]!, {
    env: terminal.env,
    sets: flags.set,
    cwd: terminal.cwd,
  });
  const selected = selectStages(pipeline, flags);
  // Where outputs would go; nothing is made.
  const runDirectory = flags.runDir ?? join(terminal.cwd, 'runs', `plan-${pipeline.name}`);
  const events = await collect(context, { mode: 'plan', pipeline, selected, runDirectory });
  if (flags.json) return 0;
  const state = emptyState();
  for (const event of events) reduce(state, event);
  terminal.out(`${bold(pipeline.name)} on ${deviceText(state)}\n\n`);
  for (const stage of state.plan?.stages ?? []) {
    terminal.out(`${bold(stage.id)}  ${stage.summary}\n`);
    const rows = [
      ...Object.entries(stage.bytes).map(([name, bytes]) => [name, bytes, ''] as const),
      ...Object.entries(stage.transient).map(([name, bytes]) => [name, bytes, 'given back'] as const),
    ];
    const width = Math.max(0, ...rows.map(([name]) => name.length));
    for (const [name, bytes, note] of rows) {
      terminal.out(`    ${name.padEnd(width)}  ${bytesText(bytes).padStart(10)}  ${dim(note)}\n`);
    }
  }
  if (state.plan !== null) {
    const { peakBytes, peakStage, freeBytes, diskBytes } = state.plan;
    const where = peakStage === null ? '' : ` in '${peakStage}'`;
    terminal.out(`\nmemory: at most ${bytesText(peakBytes)}${where}, ${bytesText(freeBytes)} free\n`);
    terminal.out(`disk:   at most ${bytesText(diskBytes)}\n`);
  }
  if (flags.runDir === undefined && !flags.fresh) {
    const { path, notes } = findUnfinished(pipeline, makePlan(pipeline, selected), terminal.cwd);
    if (path !== null) terminal.out(`continues ${shortPath(path, terminal.cwd)}\n`);
    for (const note of notes) terminal.out(`${note}\n`);
  }
  return 0;
};
