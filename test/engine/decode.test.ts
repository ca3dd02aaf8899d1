/** The native decode loop: who sees which token, and when it ends. */
import { test } from 'uvu';
import * as assert from 'uvu/assert';

import type { DecodeOptions, DecodeResult } from '../../runtime/engine/engine.js';
import { Q4Error } from '../../runtime/errors.js';
import { counter, inStore, program } from './programs.js';
import { onGpu, openTestEngine } from './test-device.js';

const engine = openTestEngine(1);

interface Decoded extends DecodeResult {
  /** [row, token], in the order in which onToken saw them. */
  readonly seen: readonly (readonly [number, number])[];
  /** Where the counters stood in the end: what was run, told or not. */
  readonly left: readonly number[];
}

/** Decodes from a counter for each row; row r starts at `starts[r]`. */
async function decode(
  starts: readonly number[],
  options: Partial<DecodeOptions> & { maxTokens: number },
): Promise<Decoded> {
  const store = engine.createStore();
  store.allocate('ids', 'i32', [starts.length]);
  store.write('ids', Int32Array.from(starts));
  const run = engine.load(counter(starts.length), store);
  const seen: [number, number][] = [];
  try {
    const result = await run.decode({
      tokens: 'ids',
      stopTokens: [],
      ...options,
      onToken: (row, token) => {
        seen.push([row, token]);
        return options.onToken?.(row, token);
      },
    });
    // Nothing may arrive once the promise has settled.
    const count = seen.length;
    await new Promise((resolve) => setTimeout(resolve, 5));
    assert.is(seen.length, count);
    return { ...result, seen, left: [...store.read('ids')].map(Number) };
  } finally {
    run.dispose();
    store.dispose();
  }
}

const plain = ({ tokens }: DecodeResult): number[][] => tokens.map((row) => [...row]);
const range = (from: number, to: number): number[] => Array.from({ length: to - from }, (_, i) => from + i);

test('runs to maxTokens, and every token was seen before the promise settles', async () => {
  for (let round = 0; round < 20; round++) {
    const length = 1 + round * 7;
    const result = await decode([0], { maxTokens: length });
    assert.equal(plain(result), [range(1, length + 1)]);
    assert.equal([...result.finish], ['length']);
    assert.is(result.steps, length);
    assert.equal(
      result.seen.map(([, token]) => token),
      range(1, length + 1),
    );
  }
});

test('no tokens at all', async () => {
  const result = await decode([0, 5], { maxTokens: 0 });
  assert.equal(plain(result), [[], []]);
  assert.equal([...result.finish], ['length', 'length']);
  assert.is(result.steps, 0);
});

test('each row ends at its own stop token, which belongs to it; the loop ends with the last row', async () => {
  const result = await decode([0, 10, 20], { maxTokens: 40, stopTokens: [3, 15, 22] });
  assert.equal(plain(result), [range(1, 4), range(11, 16), range(21, 23)]);
  assert.equal([...result.finish], ['stop', 'stop', 'stop']);
  assert.is(result.steps, 5);
  // Rows in order within a step, and none after it has ended.
  assert.equal(
    result.seen,
    [[0, 1], [1, 11], [2, 21], [0, 2], [1, 12], [2, 22], [0, 3], [1, 13], [1, 14], [1, 15]], // prettier-ignore
  );
});

test('one row stops, the other runs out', async () => {
  const result = await decode([0, 100], { maxTokens: 6, stopTokens: [2, -5, 2 ** 40] });
  assert.equal(plain(result), [[1, 2], range(101, 107)]);
  assert.equal([...result.finish], ['stop', 'length']);
});

test('no step goes beyond maxTokens, and at most one beyond the last that was told', async () => {
  for (const maxTokens of [1, 2, 3, 50]) {
    const whole = await decode([0, 100], { maxTokens });
    assert.equal([...whole.left], [maxTokens, 100 + maxTokens]);
  }
  for (const stop of [1, 2, 9]) {
    const stopped = await decode([0], { maxTokens: 50, stopTokens: [stop] });
    assert.is(stopped.steps, stop);
    assert.ok(stopped.left[0]! >= stop && stopped.left[0]! <= stop + (onGpu() ? 1 : 0), `${stopped.left[0]}`);
  }
});

test('a stop token as the last token allowed counts as stop', async () => {
  const result = await decode([0], { maxTokens: 3, stopTokens: [3] });
  assert.equal([...result.finish], ['stop']);
  assert.equal(plain(result), [[1, 2, 3]]);
});

test('onToken ends rows one by one, however far the loop ran ahead', async () => {
  const result = await decode([0, 1000], {
    maxTokens: 500,
    onToken: (row, token) => (row === 0 ? token === 7 : token === 1030),
  });
  assert.equal(plain(result), [range(1, 8), range(1001, 1031)]);
  assert.equal([...result.finish], ['stop', 'stop']);
  assert.ok(result.steps >= 30 && result.steps <= 30 + 16, `${result.steps} steps`);
});

test('onToken that ends every row at once stops the loop', async () => {
  const result = await decode([0], { maxTokens: 1_000_000, onToken: () => true });
  assert.equal(plain(result), [[1]]);
  assert.ok(result.steps < 20);
});

test('what onToken throws ends the loop and is what the decode rejects with', async () => {
  const mistake = new Error('a mistake of the caller');
  let calls = 0;
  try {
    await decode([0, 50], {
      maxTokens: 1_000_000,
      onToken: () => {
        if (++calls === 3) throw mistake;
      },
    });
  } catch (thrown) {
    assert.is(thrown, mistake);
    assert.is(calls, 3, 'no call follows it');
    // And the device is free.
    assert.equal(plain(await decode([0], { maxTokens: 2 })), [[1, 2]]);
    return;
  }
  assert.unreachable();
});

test('cancelling before, and in the middle: what was made is kept', async () => {
  const before = await decode([0], { maxTokens: 5, signal: AbortSignal.abort() });
  assert.equal([...before.finish], ['cancelled']);
  assert.equal(plain(before), [[]]);
  const stop = new AbortController();
  const result = await decode([0, 1010], {
    maxTokens: 1_000_000,
    stopTokens: [1012],
    signal: stop.signal,
    onToken: (row, token) => {
      if (row === 0 && token === 40) stop.abort();
    },
  });
  assert.equal([...result.finish], ['cancelled', 'stop']);
  const [first, second] = plain(result) as [number[], number[]];
  assert.equal(second, [1011, 1012]);
  assert.equal(first, range(1, first.length + 1));
  assert.ok(first.length >= 40 && first.length < 100);
});

test('cancelling within a long step is no error', async () => {
  const store = engine.createStore();
  for (const name of ['x', 'w', 'y']) store.allocate(name, 'f32', [256, 256]);
  store.allocate('ids', 'i32', [1]);
  const tensors = [
    inStore('ids', 'i32', [1]),
    ...['x', 'w', 'y'].map((name) => inStore(name, 'f32', [256, 256])),
  ];
  const run = engine.load(
    program(
      tensors,
      Array.from({ length: 2000 }, () => ({ op: 'linear', inputs: [1, 2], outputs: [3] })),
    ),
    store,
  );
  const stop = new AbortController();
  setTimeout(() => stop.abort(), 30);
  const result = await run.decode({ tokens: 'ids', maxTokens: 1e9, stopTokens: [], signal: stop.signal });
  assert.equal([...result.finish], ['cancelled']);
  run.dispose();
  store.dispose();
});

// A GPU does not look at ids before it uses them.
(onGpu() ? test.skip : test)('an error within a step is told', async () => {
  const store = engine.createStore();
  store.allocate('table', 'f32', [4, 2]);
  store.allocate('ids', 'i32', [1]);
  store.allocate('y', 'f32', [1, 2]);
  const tensors = [inStore('table', 'f32', [4, 2]), inStore('ids', 'i32', [1]), inStore('y', 'f32', [1, 2])];
  const run = engine.load(
    program(tensors, [
      { op: 'embedding', inputs: [0, 1], outputs: [2] },
      { op: 'increment', inputs: [], outputs: [1], attrs: { by: 1, max: 100 } },
    ]),
    store,
  );
  const seen: number[] = [];
  try {
    await run.decode({
      tokens: 'ids',
      maxTokens: 100,
      stopTokens: [],
      onToken: (_, token) => void seen.push(token),
    });
    assert.unreachable('ids beyond the table');
  } catch (thrown) {
    assert.instance(thrown, Q4Error);
    assert.is((thrown as Q4Error).code, 'Q4510');
    assert.match((thrown as Error).message, /embedding/);
  }
  run.dispose();
  store.dispose();
});

test('wrong arguments are errors', async () => {
  const store = engine.createStore();
  store.allocate('ids', 'i32', [1]);
  store.allocate('floats', 'f32', [1]);
  const run = engine.load(counter(1), store);
  const code = (options: Partial<DecodeOptions>): Promise<string> =>
    run.decode({ tokens: 'ids', maxTokens: 1, stopTokens: [], ...options }).then(
      () => 'allowed',
      (thrown: Q4Error) => thrown.code,
    );
  assert.is(await code({ tokens: 'nothing' }), 'Q4511');
  assert.is(await code({ tokens: 'floats' }), 'Q4510');
  assert.is(await code({ maxTokens: Number.NaN }), 'Q4514');
  assert.is(await code({ stopTokens: [0.5] }), 'Q4514');
  assert.is(await code({}), 'allowed');
  run.dispose();
  store.dispose();
});

test('a hundred loops in a row keep nothing', async () => {
  const held = engine.memory.allocatedBytes;
  for (let i = 0; i < 100; i++) await decode([i], { maxTokens: 3 });
  assert.is(engine.memory.allocatedBytes, held);
});

test.after(() => engine.dispose());
test.run();
