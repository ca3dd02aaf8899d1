import { test } from 'uvu';
import * as assert from 'uvu/assert';

import type { EventBody, RunEvent } from '../../../runtime/runner/events/event.js';
import { emptyState, etaSeconds, reduce, type RunState } from '../../../runtime/runner/events/run-state.js';
import {
  runningLines,
  secondsText,
  sparkline,
  stepText,
} from '../../../runtime/runner/supervisor/status-text.js';

function play(bodies: readonly (EventBody & { t?: number })[], state = emptyState()): RunState {
  bodies.forEach((body, i) => reduce(state, { v: 1, t: i * 1000, ...body } as RunEvent));
  return state;
}

const START = { ev: 'run-start', t: 500, name: 'n', stages: [{ id: 'train', uses: 'train' }] };
const step = (n: number, t: number, loss = 1) => ({
  ev: 'step',
  stage: 'train',
  step: n,
  steps: 100,
  loss,
  grad_norm: 1,
  lr: 1,
  t,
});

test('a continued run keeps its curve; steps done again replace those before', () => {
  const state = play([
    START,
    { ev: 'stage-start', stage: 'train' },
    step(1, 2000, 9),
    step(2, 3000, 8),
    step(3, 4000, 7),
  ]);
  play([{ ...START, resumed: true, t: 9000 }, step(3, 10_000, 5), step(4, 11_000, 4)], state);
  assert.equal(
    [...state.stages[0]!.steps.values()].map(({ step, loss }) => [step, loss]),
    [
      [1, 9],
      [2, 8],
      [3, 5],
      [4, 4],
    ],
  );
  assert.is(state.startedAt, 500);
});

test('the estimate counts from the resume point, not from before it', () => {
  const state = play([{ ...START, t: 0 }, step(1, 1000), step(2, 2000)]);
  play([{ ...START, t: 1e9 }, step(50, 1e9 + 1000), step(51, 1e9 + 3000)], state);
  assert.is(etaSeconds(state.stages[0]!, 1e9 + 3000), 49 * 2);
  assert.is(etaSeconds(state.stages[0]!, 1e9 + 4000), 49 * 2 - 1);
});

test('no estimate before there is a rate', () => {
  assert.is(etaSeconds(play([START, step(1, 1000)]).stages[0]!, 1000), null);
});

test('errors of an earlier attempt are not those of this one', () => {
  const state = play([START, { ev: 'error', code: 'Q4704', message: 'interrupted' }, START]);
  assert.is(state.errors.length, 0);
});

test('a loss that is not a number arrives as text', () => {
  const state = play([START, { ...step(1, 1), loss: 'NaN' as unknown as number }]);
  assert.ok(Number.isNaN(state.stages[0]!.steps.get(1)!.loss));
});

test('streamed pieces become an answer', () => {
  const state = play([
    START,
    { ev: 'token', stage: 'train', prompt: 'a', text: 'He' },
    { ev: 'token', stage: 'train', prompt: 'a', text: 'llo' },
  ]);
  assert.equal(state.stages[0]!.partial, { prompt: 'a', text: 'Hello' });
  play([{ ev: 'answer', stage: 'train', prompt: 'a', text: 'Hello.' }], state);
  assert.is(state.stages[0]!.partial, null);
  assert.equal(state.stages[0]!.answers, [{ prompt: 'a', text: 'Hello.' }]);
});

test('the same events give the same lines', () => {
  const state = play([START, step(1, 1000, 4), step(2, 2000, 3), step(3, 3000, 2)]);
  assert.is(stepText(state.stages[0]!, 3000), 'step 3/100 · loss 2.0000 · 1m 37s left');
  assert.equal(runningLines(state.stages[0]!, 100, 3000), [
    '━───────────────────────────── step 3/100 · loss 2.0000 · 1m 37s left',
    'loss █▅▁',
  ]);
  assert.ok(runningLines(state.stages[0]!, 40, 3000).every((line) => line.length <= 40));
});

test('texts of numbers', () => {
  assert.equal([0.04, 9.94, 12, 59.7, 75, 3600, 7260, 200_000].map(secondsText), [
    '0.0s',
    '9.9s',
    '12s',
    '1m 00s',
    '1m 15s',
    '1h 00m',
    '2h 01m',
    '2d',
  ]);
  assert.is(sparkline([1, 2, 3, NaN], 10), '▁▅█');
  assert.is(sparkline([1], 10), '');
  assert.is(sparkline([2, 2], 10), '▁▁');
});

test.run();
