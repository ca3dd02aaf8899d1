/** Reading compute-sanitizer: which reports count. */
import { readFileSync } from 'node:fs';
import { test } from 'uvu';
import * as assert from 'uvu/assert';

import { problemsIn } from './gpu/sanitizer-reports.js';

const SM90 = new URL('../native/cuda/sm90.cuh', import.meta.url);
/** A line within copy_bytes, and one before it. */
const lines = readFileSync(SM90, 'utf8').split('\n');
const copying = lines.findIndex((line) => line.includes(' copy_bytes(')) + 2;
const before = lines.findIndex((line) => line.includes(' barrier_init(')) + 1;

const race = (kernel: string, write: string, read: string): string =>
  [
    `========= Error: Race reported between Write access at ${kernel}+0x81f0${write}`,
    `=========     and Read access at ${kernel}+0x8210${read} [18 hazards]`,
    '========= ',
    '',
  ].join('\n');
const SUMMARY = '========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)\n';
const ours = 'void q4::gpu::<unnamed>::some_kernel<(bool)0>(q4::gpu::Call, int)';

test('nothing to report', () => {
  assert.equal(problemsIn('memcheck', '5 passed, 0 failed\n========= ERROR SUMMARY: 0 errors\n', 0), []);
  const clean = '========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n';
  assert.equal(problemsIn('racecheck', clean, 0), []);
});

test('a race between accesses of our kernels counts, with lines and without', () => {
  const report = race(ours, ' in /a/b.cu:12', ' in /a/b.cu:15');
  assert.equal(problemsIn('racecheck', report + report + SUMMARY, 0), [
    '2 x Write some_kernel b.cu:12, Read some_kernel b.cu:15',
  ]);
  assert.equal(problemsIn('racecheck', race(ours, '', '') + SUMMARY, 0), [
    '1 x Write some_kernel 0x81f0, Read some_kernel 0x8210',
  ]);
  const other = race(ours, ` in /a/sm90.cuh:${before}`, ' in /a/b.cu:15');
  assert.is(problemsIn('racecheck', other + SUMMARY, 0).length, 1);
  const unread = '========= Error: Race reported between something else\n========= \n';
  assert.is(problemsIn('racecheck', unread + SUMMARY, 0).length, 1);
});

test('what racecheck cannot follow does not: bulk copies, and kernels of others', () => {
  const copied = race(ours, ` in /a/sm90.cuh:${copying}`, ' in /a/b.cu:15');
  assert.equal(problemsIn('racecheck', copied + SUMMARY, 0), []);
  assert.equal(problemsIn('racecheck', race('nvjet_sm90_tst_64x8', '', '') + SUMMARY, 0), []);
});

test('everything else is a problem', () => {
  assert.is(problemsIn('memcheck', '========= ERROR SUMMARY: 3 errors\n', 0).length, 1);
  assert.is(problemsIn('memcheck', '========= ERROR SUMMARY: 0 errors\n', 1).length, 1);
  assert.is(problemsIn('memcheck', '', null).length, 2);
  assert.is(problemsIn('racecheck', 'killed', 0).length, 1);
  assert.is(problemsIn('racecheck', `========= Internal Sanitizer Error: no\n${SUMMARY}`, 0).length, 1);
});

test.run();
