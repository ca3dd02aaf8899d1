/** Ctrl-C and a crash of a real training run, as a user meets them. More of these stand in test/faults. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'uvu';
import * as assert from 'uvu/assert';

import { readReport } from './q4run.js';
import { finish, savedSteps, start, step, STOPPABLE, undisturbed, workerOf } from './stoppable-run.js';
import { fingerprint, leftovers, trainingFolder } from './training-run.js';

const expected = undisturbed(STOPPABLE);

test('Ctrl-C saves a checkpoint, exits 130, and the same command ends with the same bytes', async () => {
  const cwd = trainingFolder(STOPPABLE);
  const run = start(cwd);
  await run.until(step(20));
  run.child.kill('SIGINT');
  const { code, err } = await run.done;
  assert.is(code, 130, err);
  assert.match(err, /Q4704/);
  const [saved] = savedSteps(cwd);
  assert.ok(saved! >= 20 && saved! < 150, `saved at ${saved}`);
  assert.match(err, new RegExp(`after step ${saved} of 150; the same command goes on`));
  assert.is(readReport(join(cwd, 'run')).exit_code, 130);
  assert.equal(leftovers(join(cwd, 'run')), []);
  const again = start(cwd);
  const resumed = await again.until(({ ev }) => ev === 'resume');
  assert.is(resumed['step'], saved);
  assert.is((await again.done).code, 0);
  assert.equal(fingerprint(join(cwd, 'run')), await expected);
});

test('a worker that ends by SIGKILL is exit 7, and the last checkpoint is named', async () => {
  const cwd = trainingFolder({ ...STOPPABLE, every: 10 });
  const run = start(cwd);
  await run.until(({ ev }) => ev === 'checkpoint');
  process.kill(workerOf(cwd), 'SIGKILL');
  const { code, err } = await run.done;
  assert.is(code, 7, err);
  assert.match(err, /Q4702.*SIGKILL/);
  const named = /the last checkpoint is (\S+\/step-\d+)/.exec(err)?.[1];
  assert.ok(named !== undefined && existsSync(join(named, 'manifest.json')), err);
  await finish(cwd);
  assert.equal(fingerprint(join(cwd, 'run')).exported, (await expected).exported);
});

test.run();
