/** Interrupted and killed runs, as processes of their own. */
import { spawn, type ChildProcess } from 'node:child_process';
import { existsSync, readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { test } from 'uvu';
import * as assert from 'uvu/assert';

import { EXAMPLE_FILES, FAKE_CLI, folder } from './fixture.js';

interface Started {
  readonly child: ChildProcess;
  readonly ended: Promise<{ code: number | null; signal: string | null; err: string }>;
  /** Resolves when stderr holds this. */
  said(text: string): Promise<void>;
}

function start(home: string, argv: readonly string[], env: Record<string, string> = {}): Started {
  const child = spawn(process.execPath, ['--import', import.meta.resolve('tsx'), FAKE_CLI, ...argv], {
    cwd: home,
    env: { ...process.env, ...env },
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  let err = '';
  child.stderr!.setEncoding('utf8').on('data', (text: string) => (err += text));
  const ended = new Promise<{ code: number | null; signal: string | null; err: string }>((resolve) =>
    child.on('close', (code, signal) => resolve({ code, signal, err })),
  );
  const said = async (text: string): Promise<void> => {
    for (let i = 0; i < 1200 && !err.includes(text); i++) await sleep(25);
    if (!err.includes(text)) throw new Error(`never said '${text}': ${err}`);
  };
  return { child, ended, said };
}

const SETS = ['--set', 'train.steps=60', '--set', 'train.checkpoint.every=2'];
const runs = (home: string): string[] => readdirSync(join(home, 'runs'));
const weight = (home: string): string =>
  readFileSync(join(home, 'runs', runs(home).at(-1)!, 'trained.dat'), 'utf8');
const status = (home: string): string =>
  (JSON.parse(readFileSync(join(home, 'runs', runs(home)[0]!, 'report.json'), 'utf8')) as { status: string })
    .status;

for (const [signal, code] of [
  ['SIGINT', 130],
  ['SIGTERM', 143],
] as const) {
  test(`${signal}: a saved checkpoint, exit ${code}, and the same command goes on`, async () => {
    const home = folder(EXAMPLE_FILES);
    const first = start(home, ['p.yaml', ...SETS], { FAKE_STEP_MS: '400' });
    await first.said('step 1/60');
    first.child.kill(signal);
    // Under npx a Ctrl-C comes twice: it is still one.
    first.child.kill(signal);
    const ended = await first.ended;
    assert.is(ended.code, code, ended.err);
    assert.match(ended.err, /saved at step \d+/);
    assert.is(status(home), 'interrupted');
    const second = await start(home, ['p.yaml', ...SETS]).ended;
    assert.is(second.code, 0, second.err);
    assert.match(second.err, /^continuing /);
    assert.is(runs(home).length, 1);
    const straight = folder(EXAMPLE_FILES);
    await start(straight, ['p.yaml', ...SETS]).ended;
    assert.is(weight(home), weight(straight));
  });
}

test('a second Ctrl-C stops a stage that does not listen', async () => {
  const home = folder(EXAMPLE_FILES);
  const deaf = start(home, ['p.yaml', ...SETS, '--set', 'train.steps=100000'], {
    FAKE_STEP_MS: '20',
    FAKE_FAULT: 'deaf',
  });
  await deaf.said('step 1/100000');
  deaf.child.kill('SIGINT');
  await deaf.said('once more stops at once');
  await sleep(700);
  deaf.child.kill('SIGINT');
  const ended = await deaf.ended;
  assert.is(ended.code, 130, ended.err);
  assert.match(ended.err, /stopped at once: the last checkpoint is|stopped at once: no checkpoint/);
});

test('killed at random moments, also while saving, it ends with the same bytes', async () => {
  const home = folder(EXAMPLE_FILES);
  const straight = folder(EXAMPLE_FILES);
  await start(straight, ['p.yaml', ...SETS]).ended;
  // Fixed delays from a seed, so that a failure can be repeated.
  let seed = 7;
  const random = (): number => (seed = (seed * 48271) % 2147483647) / 2147483647;
  let killed = 0;
  for (let i = 0; i < 6; i++) {
    const run = start(home, ['p.yaml', ...SETS], { FAKE_STEP_MS: '25' });
    await run.said('[train] start');
    await sleep(50 + 400 * random());
    run.child.kill('SIGKILL');
    if ((await run.ended).signal === 'SIGKILL') killed += 1;
  }
  assert.ok(killed >= 3);
  const last = await start(home, ['p.yaml', ...SETS]).ended;
  assert.is(last.code, 0, last.err);
  assert.is(runs(home).length, 1);
  assert.is(weight(home), weight(straight));
  const checkpoints = join(home, 'runs', runs(home)[0]!, 'checkpoints/train');
  assert.equal(readdirSync(checkpoints).sort(), ['step-58', 'step-60']);
});

test('a worker does not outlive its supervisor', async () => {
  const home = folder(EXAMPLE_FILES);
  const run = start(home, ['p.yaml', ...SETS, '--set', 'train.steps=100000'], { FAKE_STEP_MS: '20' });
  await run.said('step 1/100000');
  const lock = join(home, 'runs', runs(home)[0]!, '.lock');
  const { worker } = JSON.parse(readFileSync(lock, 'utf8')) as { worker: { pid: number } };
  run.child.kill('SIGKILL');
  await run.ended;
  const alive = (): boolean =>
    existsSync(`/proc/${worker.pid}`) && !/\) Z /.test(readFileSync(`/proc/${worker.pid}/stat`, 'utf8'));
  for (let i = 0; i < 100 && alive(); i++) await sleep(20);
  assert.not.ok(alive());
});

test('two processes do not work in one run directory', async () => {
  const home = folder(EXAMPLE_FILES);
  const flags = ['p.yaml', ...SETS, '--run-dir', 'here'];
  const first = start(home, flags, { FAKE_STEP_MS: '400' });
  await first.said('step 1/60');
  const second = await start(home, flags).ended;
  assert.is(second.code, 2);
  assert.match(second.err, /Q4006\]: another q4run \(process \d+\) works in/);
  first.child.kill('SIGKILL');
  await first.ended;
  assert.is((await start(home, flags).ended).code, 0);
});

test('a stale or torn lock is no lock', async () => {
  for (const text of [
    '',
    '{"boot":"x"',
    '{"boot":null,"supervisor":{"pid":999999,"started":null},"worker":null}',
  ]) {
    const home = folder({ ...EXAMPLE_FILES, 'here/.lock': text });
    const run = await start(home, ['p.yaml', '--run-dir', 'here']).ended;
    assert.is(run.code, 0, run.err);
    assert.not.ok(existsSync(join(home, 'here/.lock')));
  }
});

test.run();
