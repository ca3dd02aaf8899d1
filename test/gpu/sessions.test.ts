/** Opening and closing on a GPU: device and host memory stay flat; large files arrive as they are. */
import { join } from 'node:path';
import { test } from 'uvu';
import * as assert from 'uvu/assert';

import { openEngine, type Engine, type LoadItem, type WriteItem } from '../../runtime/engine/engine.js';
import type { Masters } from '../../runtime/models/model.js';
import { InferenceSession } from '../../runtime/sessions/inference.js';
import type { LoadedModel } from '../../runtime/sessions/model.js';
import { TrainingSession } from '../../runtime/sessions/training.js';
import { integers } from '../native/random-values.js';
import { configJson, goldenCase } from '../stages/golden-case.js';
import { loadedModel } from '../stages/loaded-model.js';
import { folder } from '../stages/q4run.js';

const SESSIONS = 1000;
/** Sessions after which everything lazy exists. */
const WARM = 50;
/** Device memory is handed out in pieces of 2 MiB; beside us another process may hold a little. */
const DEVICE_SLACK = 8 << 20;
/** V8 keeps what it collects later. */
const HOST_SLACK = 96 << 20;

const { files, config } = goldenCase({ seed: 41, greedyPrompt: null, tokens: 1, batch: 1 });
const cwd = folder({ ...files, 'config.json': configJson(config) });
const sampling = { temperature: 0.7, topK: 20, topP: 0.9, minP: 0, repetitionPenalty: 1.1, seed: 3 };

const bf16Model = async (engine: Engine, masters: Masters): Promise<LoadedModel> => ({
  ...(await loadedModel(engine, cwd, { masters })),
  activation: 'bf16',
});

async function infer(engine: Engine, model: LoadedModel, round: number): Promise<void> {
  const session = new InferenceSession(engine, model, { rows: 1 + (round % 3), capacity: 64 });
  const prompts = Array.from({ length: session.rows }, (_, row) => [
    ...integers(4 + (round % 7), row + 1, config.vocab_size),
  ]);
  const { tokens } = await session.generate(prompts, { sampling, maxTokens: 4, stopTokens: [] });
  assert.ok(tokens.every(({ length }) => length === 4));
  session.dispose();
}

async function train(engine: Engine, model: LoadedModel): Promise<void> {
  const [batch, tokens] = [2, 16];
  const session = await TrainingSession.open(engine, model, {
    ...{ batch, tokens, loss: 'cross_entropy', recompute: 'none', gradients: 'auto', maxGradNorm: 1 },
    ...{
      betas: [0.9, 0.95],
      eps: 1e-8,
      weightDecay: 0.1,
      decay: 'matrices',
      accumulates: false,
      evaluates: false,
      seed: 1,
    },
  });
  const rows = batch * tokens;
  const ids = integers(rows, 5, config.vocab_size);
  const positions = Int32Array.from(ids, (_, i) => i % tokens);
  const micro = { ids, labels: ids, positions, attendFrom: new Int32Array(rows), counted: rows };
  // Plainly, recorded, replayed.
  for (let step = 0; step < 3; step++) await session.step([micro], 1e-4, step);
  session.dispose();
}

/** Runs `body` many times and asserts that neither memory grows after the first few. */
async function flat(engine: Engine, times: number, body: (round: number) => Promise<void>): Promise<void> {
  const warm = Math.min(WARM, times >> 1);
  let [free, resident] = [0, 0];
  const began = performance.now();
  for (let round = 0; round < times; round++) {
    if (round === warm) [free, resident] = [engine.device.freeBytes, process.memoryUsage.rss()];
    await body(round);
  }
  const lost = free - engine.device.freeBytes;
  const grown = process.memoryUsage.rss() - resident;
  const seconds = ((performance.now() - began) / 1000).toFixed(1);
  console.log(
    `${times} in ${seconds} s: device ${(lost / 2 ** 20).toFixed(1)} MiB, host ${(grown / 2 ** 20).toFixed(1)} MiB more`,
  );
  assert.ok(lost <= DEVICE_SLACK, `${lost} bytes of the device were lost`);
  assert.ok(grown <= HOST_SLACK, `${grown} bytes of the host were lost`);
}

for (const [name, masters, times] of [
  ['inference', 'none', SESSIONS],
  ['training', 'fp32', 100],
] as const)
  test(`${times} ${name} sessions opened and closed on one model leave memory as it was`, async () => {
    const engine = openEngine({ device: 'cuda' });
    const model = await bf16Model(engine, masters);
    const held = engine.memory.allocatedBytes;
    await flat(engine, times, (round) =>
      masters === 'none' ? infer(engine, model, round) : train(engine, model),
    );
    if (masters === 'none') assert.is(engine.memory.allocatedBytes, held);
    model.dispose();
    assert.is(engine.memory.allocatedBytes, 0);
    engine.dispose();
  });

test('engines opened, used and closed leave memory as it was', async () => {
  const watcher = openEngine({ device: 'cuda' });
  await flat(watcher, 40, async (round) => {
    const engine = openEngine({ device: 'cuda' });
    const model = await bf16Model(engine, 'none');
    await infer(engine, model, round);
    model.dispose();
    engine.dispose();
  });
  watcher.dispose();
});

test('a file larger than the staging buffers arrives byte for byte', async () => {
  // Sizes around those of the buffers, and small ones between.
  const shapes = [[1], [3, 5], [7_000_001], [2, 4096], [12, 1_000_003], [1], [64 << 18], [9, 9]];
  const items: WriteItem[] = shapes.map((shape, i) => {
    const values = Float32Array.from(
      integers(shape.reduce((a, b) => a * b, 1), i + 1, 1 << 24), // prettier-ignore
    );
    return { name: `t${i}`, type: 'f32', shape, data: values };
  });
  const path = join(folder(), 'large.dat');
  const engine = openEngine({ device: 'cuda' });
  await engine.files.writeDat(null, path, items);
  const store = engine.createStore();
  const index = await engine.files.indexDat(path);
  const wanted: LoadItem[] = shapes.map((shape, i) => {
    store.allocate(`t${i}`, 'f32', shape);
    return { entry: `t${i}`, tensor: `t${i}`, part: 'data' };
  });
  const { bytes } = await engine.files.load(store, index, wanted);
  assert.ok(bytes > 128 << 20);
  for (const [i, item] of items.entries())
    assert.ok(
      Buffer.from((item as { data: Float32Array }).data.buffer).equals(
        Buffer.from(store.read(`t${i}`).buffer),
      ),
      `t${i}`,
    );
  store.dispose();
  engine.dispose();
});

test.run();
