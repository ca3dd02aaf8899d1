import { transitiveNeeds } from '../config/order.js';
import { loadPipeline, type Pipeline } from '../config/pipeline.js';
import { effectiveRows } from '../config/effective.js';
import { fromPlain } from '../config/tree.js';
import { shortPath } from '../error-text.js';
import {
  findUnfinished,
  isFinished,
  makePlan,
  readPlan,
  runsDirectory,
  runsOf,
} from '../supervisor/run-directory.js';
import { knownStage, selectStages } from '../supervisor/selection.js';
import type { Command } from './command.js';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';

/** Why a stage runs, what it waits for, and what it continues from or what has changed since the last run. */
export const why: Command = (context) => {
  const { flags, terminal } = context;
  const { bold } = terminal.colors;
  const pipeline = loadPipeline(context.positionals[0]!, {
    env: terminal.env,
    sets: flags.set,
    cwd: terminal.cwd,
  });
  const id = knownStage(pipeline, context.positionals[1]!);
  const stage = pipeline.stages.find((candidate) => candidate.id === id)!;
  const users = pipeline.stages.filter((other) => transitiveNeeds(pipeline.stages, other.id).includes(id));
  const lines = [`${bold(id)} (${stage.uses})`];
  const needs = transitiveNeeds(pipeline.stages, id);
  lines.push(needs.length === 0 ? 'needs nothing' : `needs ${needs.join(', ')}`);
  lines.push(
    users.length === 0 ? 'nothing needs it' : `needed by ${users.map((other) => other.id).join(', ')}`,
  );
  const selected = selectStages(pipeline, flags);
  lines.push(selected.includes(id) ? 'it runs with this command' : 'it does not run with this command');
  lines.push(...history(pipeline, id, selected, terminal.cwd));
  terminal.out(`${lines.join('\n')}\n`);
  return Promise.resolve(0);
};

function history(pipeline: Pipeline, id: string, selected: readonly string[], cwd: string): string[] {
  const unfinished = findUnfinished(pipeline, makePlan(pipeline, selected), cwd);
  if (unfinished.path !== null) {
    const where = shortPath(unfinished.path, cwd);
    const steps = checkpointSteps(join(unfinished.path, 'checkpoints', id));
    const from =
      steps.length === 0
        ? 'this stage has no checkpoint there and starts anew'
        : `from step ${Math.max(...steps)}`;
    return [`the command continues ${where}: ${from}`];
  }
  const [newest] = runsOf(runsDirectory(pipeline, cwd), pipeline.name);
  const old = newest === undefined ? null : readPlan(newest);
  if (newest === undefined || old === null)
    return [...unfinished.notes, 'this pipeline has not run here before'];
  const where = shortPath(newest, cwd);
  if (old.hash === pipeline.hash) {
    const state = isFinished(newest)
      ? 'is finished, so the command runs it again in a new directory'
      : 'is not finished';
    return [...unfinished.notes, `the last run with these settings, ${where}, ${state}`];
  }
  return [
    ...unfinished.notes,
    `the last run, ${where}, had other settings:`,
    ...differences(pipeline, old.config, cwd),
  ];
}

const checkpointSteps = (directory: string): number[] => {
  try {
    return readdirSync(directory).flatMap((name) =>
      /^step-[0-9]+$/.test(name) ? [Number(name.slice(5))] : [],
    );
  } catch {
    return [];
  }
};

function differences(pipeline: Pipeline, config: Parameters<typeof fromPlain>[0], cwd: string): string[] {
  const shorten = (path: string): string => shortPath(path, cwd);
  const before = new Map(
    effectiveRows(fromPlain(config, { kind: 'default' }, ''), shorten).map(({ key, value }) => [key, value]),
  );
  const now = effectiveRows(pipeline.tree, shorten);
  const changed = now
    .filter(({ key, value }) => before.get(key) !== value)
    .map(({ key, value, origin }) => `  ${key}: ${before.get(key) ?? 'not set'} → ${value}  (${origin})`);
  const keys = new Set(now.map(({ key }) => key));
  const gone = [...before.keys()]
    .filter((key) => !keys.has(key))
    .map((key) => `  ${key}: ${before.get(key)} → not set`);
  return [...changed, ...gone];
}
