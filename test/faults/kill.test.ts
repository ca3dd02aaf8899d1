/**
 * SIGKILL at random moments and at the worst ones: whatever is killed, the same command ends with the bytes of the
 * undisturbed run. 20 kills by default (Q4RUN_KILLS), at most two a run before it may end.
 */
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'uvu';
import * as assert from 'uvu/assert';

import { uniformSource } from '../native/random-values.js';
import type { Running } from '../stages/q4run.js';
import { finish, start, undisturbed, workerOf } from '../stages/stoppable-run.js';
import { fingerprint, leftovers, trainingFolder, type TrainingOptions } from '../stages/training-run.js';

const TRIES = Number(process.env['Q4RUN_KILLS'] ?? 20);
const seed = Number(process.env['Q4RUN_SEED'] ?? 1);
const uniform = uniformSource(seed);

/** Saves often: much of the run is saving. */
const OPTIONS: TrainingOptions = {
  steps: 120,
  every: 4,
  train: 'eval: { fraction: 0.2, every: 8 }',
  config: { hidden_size: 64, intermediate_size: 96 },
};
const expected = undisturbed(OPTIONS);

const sleep = (milliseconds: number): Promise<void> =>
  new Promise((resolve) => setTimeout(resolve, milliseconds));

const list = (directory: string): string[] => (existsSync(directory) ? readdirSync(directory) : []);

/** Something that exists for a moment only; true when it does now. */
type Moment = (cwd: string) => boolean;
const checkpoints = (cwd: string): string => join(cwd, 'run', 'checkpoints', 'train');
const MOMENTS: Readonly<Record<string, Moment>> = {
  'a checkpoint is being written': (cwd) =>
    list(checkpoints(cwd)).some((name) => name.startsWith('.saving-')),
  'its optimizer file is being written': (cwd) =>
    list(checkpoints(cwd)).some(
      (name) =>
        name.startsWith('.saving-') &&
        list(join(checkpoints(cwd), name)).some((file) => file.includes('optimizer')),
    ),
  'its manifest is being written': (cwd) =>
    list(checkpoints(cwd)).some(
      (name) =>
        name.startsWith('.saving-') &&
        list(join(checkpoints(cwd), name)).some((file) => file.includes('manifest')),
    ),
  'an old one is being removed': (cwd) => list(checkpoints(cwd)).some((name) => name.startsWith('.removed-')),
  'the export is being written': (cwd) => {
    const events = join(cwd, 'run', 'events.jsonl');
    return existsSync(events) && readFileSync(events, 'utf8').includes('"ev":"stage-start","stage":"save"');
  },
  'training is over': (cwd) => list(checkpoints(cwd)).includes('step-120'),
  'the run has just begun': (cwd) => existsSync(join(cwd, 'run', 'plan.json')),
};

const kill = (pid: number): void => {
  try {
    process.kill(pid, 'SIGKILL');
  } catch {
    // It has ended already.
  }
};

/** Kills the supervisor, its worker, or both in either order. */
function strike(cwd: string, run: Running): void {
  let worker = 0;
  try {
    worker = workerOf(cwd);
  } catch {
    // No worker yet.
  }
  const supervisor = run.child.pid!;
  const order = [[supervisor], [worker], [worker, supervisor], [supervisor, worker]][
    Math.floor(uniform() * 4)
  ]!;
  for (const pid of order) if (pid > 0) kill(pid);
}

/** Starts the command and kills it; true when it ended by itself before. */
async function killed(cwd: string, when: Moment | number): Promise<boolean> {
  const run = start(cwd);
  let over = false;
  void run.done.then(() => (over = true));
  if (typeof when === 'number') await sleep(when);
  else while (!over && !when(cwd)) await sleep(1);
  strike(cwd, run);
  const { code } = await run.done;
  return code === 0;
}

async function check(cwd: string, what: string): Promise<void> {
  await finish(cwd);
  assert.equal(fingerprint(join(cwd, 'run')), await expected, what);
  assert.equal(leftovers(join(cwd, 'run')), [], what);
  const names = list(checkpoints(cwd));
  assert.ok(
    names.every((name) => /^step-\d+$/.test(name)),
    `${what}: ${names.join()}`,
  );
}

test(`${TRIES} kills at random moments: every run ends alike (seed ${seed})`, async () => {
  // How long a run takes here, so that kills fall all over it.
  let length = 0;
  const timed = async (action: () => Promise<void>): Promise<void> => {
    const began = performance.now();
    await action();
    length = performance.now() - began;
  };
  await timed(() => finish(trainingFolder(OPTIONS)));
  let kills = 0;
  let runs = 0;
  while (kills < TRIES) {
    const cwd = trainingFolder(OPTIONS);
    const moments: number[] = [];
    for (let n = 0; n < 2 && kills < TRIES; n++) {
      const at = uniform() * length;
      moments.push(Math.round(at));
      if (await killed(cwd, at)) break;
      kills++;
    }
    await check(cwd, `killed after ${moments.join(', ')} ms of ${Math.round(length)}`);
    runs++;
    assert.ok(runs < 10 * TRIES, 'runs end before they are killed');
  }
  console.log(`${kills} kills in ${runs} runs of some ${Math.round(length)} ms`);
});

for (const [what, moment] of Object.entries(MOMENTS))
  test(`a run killed three times while ${what} ends alike`, async () => {
    const cwd = trainingFolder(OPTIONS);
    let kills = 0;
    for (let n = 0; n < 3; n++) if (!(await killed(cwd, moment))) kills++;
    assert.ok(kills > 0, 'the moment never came');
    await check(cwd, what);
    assert.ok(statSync(join(cwd, 'run', 'trained.dat')).size > 0);
  });

test.run();
