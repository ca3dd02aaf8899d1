import {
  existsSync,
  readFileSync,
  readdirSync,
  renameSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'uvu';
import * as assert from 'uvu/assert';

import { Validator } from '../../../runtime/runner/config/validator.js';
import { StageCheckpoints, damageOf } from '../../../runtime/runner/worker/checkpoints.js';
import type { StageEvent } from '../../../stages/context.js';
import { folder } from '../fixture.js';

function setUp(run = folder()) {
  const events: StageEvent[] = [];
  const open = () => new StageCheckpoints(run, 'train', (event) => events.push(event));
  const where = join(run, 'checkpoints', 'train');
  const names = () => readdirSync(where).sort();
  const write = (text: string) => async (directory: string) => {
    await writeFile(join(directory, 'state.bin'), text);
  };
  return { run, events, open, where, names, write };
}

test('commit, list, latest; the manifest follows its schema', async () => {
  const { open, where, write, events } = setUp();
  const checkpoints = open();
  assert.is(await checkpoints.latest(), null);
  for (const step of [2, 10, 9])
    await checkpoints.commit(step, { at: step }, write(`s${step}`), { keepLast: 5 });
  assert.equal(
    (await checkpoints.list()).map(({ step }) => step),
    [2, 9, 10],
  );
  const latest = await open().latest();
  assert.is(latest!.step, 10);
  assert.equal(latest!.meta, { at: 10 });
  const manifest: unknown = JSON.parse(readFileSync(join(where, 'step-10', 'manifest.json'), 'utf8'));
  assert.equal(new Validator().document('checkpoint-manifest', manifest).errors, []);
  assert.is(events.filter(({ ev }) => ev === 'checkpoint').length, 3);
});

test('rotation keeps the last, the best and the pinned', async () => {
  const { open, write, names } = setUp();
  const checkpoints = open();
  const scores = [5, 1, 4, 2, 3, 6, 7];
  for (const [i, score] of scores.entries()) {
    await checkpoints.commit(i, null, write('x'), { keepLast: 2, keepBest: 2, score, pinned: i === 0 });
  }
  assert.equal(names(), ['step-0', 'step-1', 'step-3', 'step-5', 'step-6']);
});

const DAMAGE: readonly [name: string, damage: (path: string) => void][] = [
  ['a flipped byte', (path) => writeFileSync(join(path, 'state.bin'), 'x10')],
  ['a cut file', (path) => truncateSync(join(path, 'state.bin'), 1)],
  ['a lost file', (path) => rmSync(join(path, 'state.bin'))],
  ['no manifest', (path) => rmSync(join(path, 'manifest.json'))],
  ['half a manifest', (path) => truncateSync(join(path, 'manifest.json'), 40)],
  ['a manifest of another version', (path) => writeFileSync(join(path, 'manifest.json'), '{"version":9}')],
];
for (const [name, damage] of DAMAGE) {
  test(`passed over and reported: ${name}`, async () => {
    const { open, where, write, events } = setUp();
    await open().commit(9, null, write('s9'), { keepLast: 2 });
    await open().commit(10, null, write('s10'), { keepLast: 2 });
    damage(join(where, 'step-10'));
    assert.type(await damageOf(join(where, 'step-10')), 'string');
    assert.is((await open().latest())!.step, 9);
    assert.match(String(events.find(({ ev }) => ev === 'warning')?.['message']), /step-10 is passed over/);
  });
}

test('what a killed process left behind goes; a checkpoint that was being replaced returns', async () => {
  const { open, where, write, names } = setUp();
  await open().commit(3, null, write('old'), { keepLast: 2 });
  renameSync(join(where, 'step-3'), join(where, '.replaced-step-3'));
  for (const name of ['.saving-step-4', '.removed-step-1']) writeFileSync(join(where, name), 'half');
  assert.is((await open().latest())!.step, 3);
  assert.equal(names(), ['step-3']);
});

test('a step saved again is replaced', async () => {
  const { open, where, write, names } = setUp();
  const checkpoints = open();
  await checkpoints.commit(3, null, write('old'), { keepLast: 2 });
  await checkpoints.commit(3, null, write('new'), { keepLast: 2 });
  assert.is(readFileSync(join(where, 'step-3', 'state.bin'), 'utf8'), 'new');
  assert.equal(names(), ['step-3']);
});

test('a save that fails leaves nothing', async () => {
  const { open, where, write } = setUp();
  await open().commit(1, null, write('x'), { keepLast: 2 });
  let thrown = '';
  await open()
    .commit(2, null, () => Promise.reject(new Error('no more')), { keepLast: 2 })
    .catch((error: Error) => (thrown = error.message));
  assert.is(thrown, 'no more');
  assert.equal(readdirSync(where), ['step-1']);
  assert.not.ok(existsSync(join(where, '.saving-step-2')));
});

test.run();
