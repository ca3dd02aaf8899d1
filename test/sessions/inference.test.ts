/** Answers on a cache: what was computed before is used again and changes nothing. */
import { test } from 'uvu';
import * as assert from 'uvu/assert';

import { Q4Error } from '../../runtime/errors.js';
import { InferenceSession, planInference, type GenerateOptions } from '../../runtime/sessions/inference.js';
import type { LoadedModel } from '../../runtime/sessions/model.js';
import { openTestEngine } from '../engine/test-device.js';
import { integers } from '../native/random-values.js';
import { greedy } from '../oracle/qwen3.js';
import { configJson, goldenCase } from '../stages/golden-case.js';
import { loadedModel } from '../stages/loaded-model.js';
import { folder } from '../stages/q4run.js';

const { files, config, weights } = goldenCase({ seed: 41, greedyPrompt: null, tokens: 1, batch: 1 });
const engine = openTestEngine(2);
let model: LoadedModel;
/** The same model again, for second opinions while a session of the first is open. */
let twin: LoadedModel;
test.before(async () => {
  const long = configJson(config, { max_position_embeddings: 4096 });
  const cwd = folder({ ...files, 'config.json': long });
  model = await loadedModel(engine, cwd, { masters: 'none' });
  twin = await loadedModel(engine, cwd, { masters: 'none' });
});
test.after(() => {
  model.dispose();
  twin.dispose();
  engine.dispose();
});

const GREEDY = { temperature: 0, topK: 0, topP: 1, minP: 0, repetitionPenalty: 1, seed: 0 };
const options = (maxTokens: number, more: Partial<GenerateOptions> = {}): GenerateOptions => ({
  sampling: GREEDY,
  maxTokens,
  stopTokens: [],
  ...more,
});
const prompt = (length: number, seed: number): number[] => [...integers(length, seed, config.vocab_size)];

async function fresh(ids: readonly number[], more: GenerateOptions): Promise<number[]> {
  const session = new InferenceSession(engine, twin, { rows: 1, capacity: ids.length + more.maxTokens + 1 });
  try {
    const { tokens } = await session.generate([ids], more);
    return [...tokens[0]!];
  } finally {
    session.dispose();
  }
}

test('greedy tokens are the oracle’s', async () => {
  for (const seed of [1, 2, 3]) {
    const ids = prompt(4 + seed * 5, seed);
    assert.equal([...ids, ...(await fresh(ids, options(16)))], greedy(config, weights, ids, 16));
  }
});

test('turns on one cache answer as afresh, also after going back', async () => {
  const session = new InferenceSession(engine, model, { rows: 1, capacity: 200 });
  const first = prompt(20, 4);
  const [a] = (await session.generate([first], options(10))).tokens;
  const second = [...first, ...a!, ...prompt(7, 5)];
  const turns = [
    second,
    [...second, ...prompt(30, 6)],
    second, // exactly what the cache holds, and less
    second.slice(0, 9),
    [...second.slice(0, 9), 3, 4, 5], // another way from the middle
    first.slice(0, 1),
    prompt(20, 7),
  ];
  assert.equal([...a!], await fresh(first, options(10)));
  for (const [i, ids] of turns.entries()) {
    const { tokens } = await session.generate([ids], options(8));
    assert.equal([...tokens[0]!], await fresh(ids, options(8)), `turn ${i}`);
  }
  session.dispose();
});

test('rows of different lengths answer as they do alone', async () => {
  const prompts = [prompt(3, 11), prompt(40, 12), prompt(17, 13)];
  const session = new InferenceSession(engine, model, { rows: 3, capacity: 80 });
  const expected: number[][] = [];
  for (const ids of prompts) expected.push(await fresh(ids, options(12)));
  // The middle row ends early; its neighbours go on.
  const stop = expected[1]![3]!;
  const { tokens, finish } = await session.generate(
    prompts,
    options(12, { onToken: (row, token) => row === 1 && token === stop }),
  );
  assert.equal([...tokens[0]!], expected[0]);
  assert.equal([...tokens[1]!], expected[1]!.slice(0, expected[1]!.indexOf(stop) + 1));
  assert.equal([...tokens[2]!], expected[2]);
  assert.equal([...finish], ['length', 'stop', 'length']);
  // And what the row that ended holds is its own: go on with it.
  const next = prompts.map((ids, row) => [...ids, ...tokens[row]!, 5, 6]);
  const again = await session.generate(next, options(5));
  for (const [row, ids] of next.entries())
    assert.equal([...again.tokens[row]!], await fresh(ids, options(5)), `row ${row}`);
  session.dispose();
});

test('a cancelled answer keeps the cache sound', async () => {
  const session = new InferenceSession(engine, model, { rows: 1, capacity: 1200 });
  const ids = prompt(25, 14);
  const stop = new AbortController();
  const { tokens, finish } = await session.generate(
    [ids],
    options(1000, { signal: stop.signal, onToken: () => void stop.abort() }),
  );
  assert.equal([...finish], ['cancelled']);
  assert.ok(tokens[0]!.length >= 1 && tokens[0]!.length < 1000);
  const next = [...ids, ...tokens[0]!, 1, 2, 3];
  assert.equal([...(await session.generate([next], options(6))).tokens[0]!], await fresh(next, options(6)));
  const mistake = new Error('a mistake');
  try {
    await session.generate([ids], options(10, { onToken: () => { throw mistake; } })); // prettier-ignore
    assert.unreachable();
  } catch (thrown) {
    assert.is(thrown, mistake);
  }
  assert.equal([...(await session.generate([next], options(6))).tokens[0]!], await fresh(next, options(6)));
  session.dispose();
});

test('a prompt of several pieces of 512', async () => {
  const ids = prompt(1101, 15);
  const made = await fresh(ids, options(3));
  const session = new InferenceSession(engine, model, { rows: 1, capacity: ids.length + 4 });
  // The same in three turns, cut at other places.
  await session.generate([ids.slice(0, 300)], options(1));
  await session.generate([ids.slice(0, 1000)], options(1));
  assert.equal([...(await session.generate([ids], options(3))).tokens[0]!], made);
  session.dispose();
});

test('the answer ends where the cache does, and a prompt that fills it is refused', async () => {
  const ids = prompt(10, 16);
  const expected = await fresh(ids, options(6));
  const session = new InferenceSession(engine, model, { rows: 1, capacity: 14 });
  const { tokens, finish } = await session.generate([ids], options(100));
  assert.equal([...tokens[0]!], expected.slice(0, 4));
  assert.equal([...finish], ['length']);
  for (const length of [14, 15]) {
    try {
      await session.generate([prompt(length, 17)], options(1));
      assert.unreachable();
    } catch (thrown) {
      assert.instance(thrown, Q4Error);
      assert.is((thrown as Q4Error).code, 'Q4504');
    }
  }
  assert.equal([...(await session.generate([prompt(13, 17)], options(5))).tokens[0]!].length, 1);
  session.dispose();
});

test('two sessions at once on one model are refused, not mixed', async () => {
  const first = new InferenceSession(engine, model, { rows: 2, capacity: 30 });
  await first.generate([prompt(3, 20), prompt(4, 21)], options(2));
  const second = new InferenceSession(engine, model, { rows: 1, capacity: 30 });
  try {
    await second.generate([prompt(3, 20)], options(2));
    assert.unreachable();
  } catch (thrown) {
    assert.is((thrown as Q4Error).code, 'Q4900');
  }
  second.dispose();
  first.dispose();
});

test('draws depend on seed, row and place alone', async () => {
  const hot = { ...GREEDY, temperature: 1.5, seed: 99 };
  const ids = prompt(12, 18);
  const expected = await fresh(ids, options(20, { sampling: hot }));
  assert.equal(await fresh(ids, options(20, { sampling: hot })), expected);
  // In two steps: the second continues with the draws of the places that it fills.
  const session = new InferenceSession(engine, model, { rows: 1, capacity: 60 });
  const [first] = (await session.generate([ids], options(8, { sampling: hot }))).tokens;
  assert.equal([...first!], expected.slice(0, 8));
  const [rest] = (await session.generate([[...ids, ...first!]], options(12, { sampling: hot }))).tokens;
  assert.equal([...rest!], expected.slice(8));
  session.dispose();
});

test('an answer that ends early leaves nothing behind for the next', async () => {
  // Penalties look at every token seen, draws at the place in the cache: a step too many would show in both.
  const hot = { ...GREEDY, temperature: 1.2, repetitionPenalty: 1.5, seed: 7 };
  const session = new InferenceSession(engine, model, { rows: 2, capacity: 120 });
  let ids = [prompt(9, 22), prompt(14, 23)];
  for (let turn = 0; turn < 4; turn++) {
    const alone = new InferenceSession(engine, twin, { rows: 2, capacity: 120 });
    const { tokens: expected } = await alone.generate(ids, options(12, { sampling: hot }));
    alone.dispose();
    // By a stop token in even turns, by the caller in odd ones.
    const last = expected.map((tokens) => tokens[3 + turn]!);
    const { tokens } = await session.generate(
      ids,
      options(12, {
        sampling: hot,
        ...(turn % 2 === 0 ? { stopTokens: last } : { onToken: (row, token) => token === last[row] }),
      }),
    );
    for (const [row, made] of tokens.entries()) {
      assert.equal([...made], expected[row]!.slice(0, made.length), `turn ${turn}, row ${row}`);
      assert.ok(last.includes(made.at(-1)!), `turn ${turn}, row ${row} ended`);
    }
    ids = ids.map((known, row) => [...known, ...tokens[row]!, 3 + turn]);
  }
  session.dispose();
});

test('memory is as planned, and given back', async () => {
  const held = engine.memory.allocatedBytes;
  for (const [rows, capacity, length] of [
    [1, 200, 150],
    [3, 64, 20],
    [1, 1500, 1100],
  ] as const) {
    const planned = planInference(model.layout, engine.device.kind, 'f32', { rows, capacity });
    const session = new InferenceSession(engine, model, { rows, capacity });
    await session.generate(
      Array.from({ length: rows }, () => prompt(length, 19)),
      options(4),
    );
    const used = engine.memory.allocatedBytes - held;
    // The weights are there already; the plan counts them.
    const own = planned.total - planned.weights;
    assert.ok(used <= own * 1.05 && used >= own * 0.5, `${used} bytes, planned ${own}`);
    session.dispose();
    assert.is(engine.memory.allocatedBytes, held);
  }
});

test.run();
