/** Training runs as children: started, watched, stopped and finished. */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import * as assert from 'uvu/assert';

import { startQ4run, type Running } from './q4run.js';
import { fingerprint, trainingFolder, type Fingerprint, type TrainingOptions } from './training-run.js';

/** Slow enough to be stopped in the middle, quick enough to be waited for. */
export const STOPPABLE: TrainingOptions = {
  steps: 150,
  every: 60,
  config: { hidden_size: 64, intermediate_size: 96 },
};

export const start = (cwd: string): Running => startQ4run(cwd, 'p.yaml', '--run-dir', join(cwd, 'run'));

/** The run is that far. */
export const step =
  (at: number) =>
  ({ ev, step: done }: { ev: string; step?: unknown }): boolean =>
    ev === 'step' && Number(done) >= at;

/** Steps of the committed checkpoints; NaN for anything else that stands among them. */
export function savedSteps(cwd: string): number[] {
  const directory = join(cwd, 'run', 'checkpoints', 'train');
  if (!existsSync(directory)) return [];
  return readdirSync(directory).map((name) => Number(/^step-(\d+)$/.exec(name)?.[1]));
}

/** Process id of the worker of a run in progress. */
export const workerOf = (cwd: string): number =>
  (JSON.parse(readFileSync(join(cwd, 'run', '.lock'), 'utf8')) as { worker: { pid: number } }).worker.pid;

/** The same command until it is done. */
export async function finish(cwd: string): Promise<void> {
  const { code, err } = await start(cwd).done;
  assert.is(code, 0, err);
}

export async function undisturbed(options: TrainingOptions): Promise<Fingerprint> {
  const cwd = trainingFolder(options);
  await finish(cwd);
  return fingerprint(join(cwd, 'run'));
}
