/** Less usual ways to stop a training run. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'uvu';
import * as assert from 'uvu/assert';

import {
  finish,
  savedSteps,
  start,
  step,
  STOPPABLE,
  undisturbed,
  workerOf,
} from '../stages/stoppable-run.js';
import { fingerprint, trainingFolder } from '../stages/training-run.js';

const expected = undisturbed(STOPPABLE);

test('SIGTERM exits 143 after a saved checkpoint', async () => {
  const cwd = trainingFolder(STOPPABLE);
  const run = start(cwd);
  await run.until(step(5));
  run.child.kill('SIGTERM');
  const { code, err } = await run.done;
  assert.is(code, 143, err);
  assert.match(err, /Q4705/);
  assert.is(savedSteps(cwd).length, 1);
  await finish(cwd);
  assert.equal(fingerprint(join(cwd, 'run')), await expected);
});

test('a second Ctrl-C stops at once and leaves what was committed', async () => {
  // Steps of a second or more: the first Ctrl-C is still waiting for its step.
  const cwd = trainingFolder({
    ...STOPPABLE,
    steps: 50,
    every: 1,
    batch: 8,
    accumulate: 200,
    config: { hidden_size: 128, intermediate_size: 512, num_hidden_layers: 6 },
  });
  const run = start(cwd);
  await run.until(({ ev }) => ev === 'checkpoint');
  run.child.kill('SIGINT');
  await run.until(({ ev }) => ev === 'stop');
  await new Promise((resolve) => setTimeout(resolve, 600));
  const asked = performance.now();
  run.child.kill('SIGINT');
  const { code, err } = await run.done;
  // Where the step was quicker than the second signal, the run had saved already: 130 as well.
  assert.is(code, 130, err);
  assert.ok(performance.now() - asked < 5000);
  assert.ok(savedSteps(cwd).every(Number.isInteger), savedSteps(cwd).join());
});

for (const signal of ['SIGSEGV', 'SIGABRT'] as const)
  test(`a worker that ends by ${signal} is exit 7, and the last checkpoint is named`, async () => {
    const cwd = trainingFolder({ ...STOPPABLE, every: 10 });
    const run = start(cwd);
    await run.until(({ ev }) => ev === 'checkpoint');
    process.kill(workerOf(cwd), signal);
    const { code, err } = await run.done;
    assert.is(code, 7, err);
    assert.match(err, new RegExp(`Q4702.*${signal}`));
    const named = /the last checkpoint is (\S+\/step-\d+)/.exec(err)?.[1];
    assert.ok(named !== undefined && existsSync(join(named, 'manifest.json')), err);
    await finish(cwd);
    assert.equal(fingerprint(join(cwd, 'run')).exported, (await expected).exported);
  });

test('a supervisor that is killed takes its worker along, and the same command goes on', async () => {
  const cwd = trainingFolder(STOPPABLE);
  const run = start(cwd);
  await run.until(step(70));
  const worker = workerOf(cwd);
  run.child.kill('SIGKILL');
  assert.is((await run.done).signal, 'SIGKILL');
  await finish(cwd);
  assert.throws(() => process.kill(worker, 0), /ESRCH/);
  assert.equal(fingerprint(join(cwd, 'run')), await expected);
});

test('two commands in one run directory: the second is refused', async () => {
  const cwd = trainingFolder({ ...STOPPABLE, steps: 100_000, every: 0 });
  const run = start(cwd);
  await run.until(step(1));
  const second = await start(cwd).done;
  assert.is(second.code, 2, second.err);
  assert.match(second.err, /Q4006/);
  run.child.kill('SIGINT');
  assert.is((await run.done).code, 130);
});

test.run();
