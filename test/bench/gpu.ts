/**
 * The Qwen3-4B shape with random weights on a GPU: training, decode and prefill, as fractions of roofs measured in the same
 * run. `npm run bench:gpu` runs it beside its peer (test/reference/peer.py).
 *
 *   node --import tsx test/bench/gpu.ts [train] [decode] [prefill] [--layers N] [--profile]
 */
import { readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { openEngine, type Engine } from '../../runtime/engine/engine.js';
import { parseQwen3Config, type Qwen3Config } from '../../runtime/models/config.js';
import { defaultStorage, layOutModel, type Masters } from '../../runtime/models/model.js';
import { listParameters } from '../../runtime/models/parameters.js';
import { elementCount, tensorBytes } from '../../runtime/program.js';
import { buildFromSeed } from '../../runtime/sessions/build.js';
import { InferenceSession } from '../../runtime/sessions/inference.js';
import type { LoadedModel } from '../../runtime/sessions/model.js';
import { measureRoofs, profileOf, profileText, type Roofs } from '../../runtime/sessions/profile.js';
import { TrainingSession, type MicroBatch } from '../../runtime/sessions/training.js';

const FIXTURE = join(dirname(fileURLToPath(import.meta.url)), '..', 'fixtures', 'qwen3-4b.config.json');
const median = (values: readonly number[]): number => [...values].sort((a, b) => a - b)[values.length >> 1]!;

async function randomModel(engine: Engine, config: Qwen3Config, masters: Masters): Promise<LoadedModel> {
  const storage = defaultStorage(config, { quantize: true, plain: masters === 'none' ? 'bf16' : 'f32' });
  const layout = layOutModel({ config, storage, masters });
  const rest = { configText: '', text: null, activation: 'bf16' as const };
  return buildFromSeed(engine, layout, { seed: 1, std: 0.02 }, rest);
}

const parameterCount = (config: Qwen3Config): number =>
  listParameters(config).reduce((sum, { shape }) => sum + elementCount(shape), 0);

/** Multiply-adds of matrices three times (forward, dgrad, wgrad), and of causal attention: FLOP of one trained token. */
function trainedTokenFlops(config: Qwen3Config, tokens: number): number {
  const { numHiddenLayers, numAttentionHeads, headDim } = config;
  return 6 * parameterCount(config) + 6 * numHiddenLayers * numAttentionHeads * headDim * tokens;
}

async function benchTraining(
  engine: Engine,
  config: Qwen3Config,
  roofs: Roofs,
  profile: boolean,
): Promise<void> {
  const [batch, tokens, steps] = [4, 2048, 12];
  const model = await randomModel(engine, config, 'fp32');
  const session = await TrainingSession.open(engine, model, {
    ...{
      batch,
      tokens,
      loss: 'cross_entropy',
      recompute: 'none',
      gradients: 'auto',
      maxGradNorm: 1,
      betas: [0.9, 0.95],
      eps: 1e-8,
    },
    ...{ weightDecay: 0.1, decay: 'matrices', accumulates: false, evaluates: false, seed: 1 },
  });
  const rows = batch * tokens;
  let random = 1;
  const draw = (): number => (random = (random * 1103515245 + 12345) % 2 ** 31) % config.vocabSize;
  const micro = (): MicroBatch => {
    const ids = Int32Array.from({ length: rows }, draw);
    const labels = Int32Array.from(ids, (_, i) => (i % tokens === tokens - 1 ? -100 : ids[i + 1]!));
    const positions = Int32Array.from(ids, (_, i) => i % tokens);
    return { ids, labels, positions, attendFrom: new Int32Array(rows), counted: rows - batch };
  };
  const seconds: number[] = [];
  for (let step = 0; step < steps; step++) {
    const batches = [micro()];
    const began = performance.now();
    const { loss, gradNorm, seconds: parts } = await session.step(batches, 1e-4, step);
    const took = (performance.now() - began) / 1000;
    // The first steps touch memory and record the graph.
    if (step >= 3) seconds.push(took);
    console.log(
      `  step ${step}: ${(took * 1000).toFixed(1)} ms (gradients ${(parts.gradients * 1000).toFixed(1)}, update ${(parts.update * 1000).toFixed(1)}), loss ${loss.toFixed(4)}, grad norm ${gradNorm.toFixed(3)}`,
    );
  }
  const rate = rows / median(seconds);
  const flops = rate * trainedTokenFlops(config, tokens);
  console.log(
    `train: ${rate.toFixed(0)} tok/s, ${(flops / 1e12).toFixed(0)} TFLOP/s, ${(flops / roofs.flops_per_second).toFixed(3)} of the product roof, ` +
      `${(engine.memory.allocatedBytes / 2 ** 30).toFixed(1)} GiB`,
  );
  if (profile) {
    const { ops } = await session.step([micro()], 1e-4, steps, true);
    console.log(profileText(profileOf(ops, roofs)));
  }
  session.dispose();
  model.dispose();
}

/** Bytes that one decoded token must read: every weight once. */
const weightBytes = (model: LoadedModel): number =>
  model.layout.parameters
    .filter(({ kind }) => kind !== 'embedding' || model.layout.config.tieWordEmbeddings)
    .reduce((sum, { weight }) => sum + tensorBytes(weight.dtype, weight.shape), 0);

async function benchDecode(
  engine: Engine,
  model: LoadedModel,
  roofs: Roofs,
  profile: boolean,
): Promise<void> {
  const sampling = { temperature: 0, topK: 0, topP: 1, minP: 0, repetitionPenalty: 1, seed: 1 };
  let alone = 0;
  for (const rows of [1, 4, 16]) {
    const session = new InferenceSession(engine, model, { rows, capacity: 256 });
    const prompts = Array.from({ length: rows }, (_, r) => [1 + r, 2, 3, 4]);
    const options = { sampling, maxTokens: 200, stopTokens: [] };
    await session.generate(prompts, { ...options, maxTokens: 16 });
    const times: number[] = [];
    for (let i = 0; i < 3; i++) {
      const { seconds, steps } = await session.generate(prompts, options);
      times.push(seconds / steps);
    }
    const step = median(times);
    if (rows === 1) alone = step;
    const share = weightBytes(model) / step / roofs.bytes_per_second;
    console.log(
      `decode, batch ${rows}: ${(step * 1e6).toFixed(0)} us a step, ${(rows / step).toFixed(0)} tok/s, ` +
        `${share.toFixed(3)} of the copy roof, ${(step / alone).toFixed(2)} x batch 1`,
    );
    if (profile && rows === 1) console.log(profileText(profileOf(await session.profileDecode(), roofs)));
    session.dispose();
  }
}

async function benchPrefill(engine: Engine, model: LoadedModel, roofs: Roofs): Promise<void> {
  const tokens = 4096;
  const sampling = { temperature: 0, topK: 0, topP: 1, minP: 0, repetitionPenalty: 1, seed: 1 };
  const session = new InferenceSession(engine, model, { rows: 1, capacity: tokens + 64 });
  const times: number[] = [];
  for (let i = 0; i < 6; i++) {
    // Another beginning every time, so that nothing is left of the cache.
    const prompt = Array.from({ length: tokens + 1 }, (_, t) => (t * 7 + i * 13 + 1) % 1000);
    const began = performance.now();
    let prefilled = began;
    await session.generate([prompt], {
      ...{ sampling, maxTokens: 1, stopTokens: [] },
      onPrefilled: () => (prefilled = performance.now()),
    });
    if (i >= 2) times.push((prefilled - began) / 1000);
  }
  const rate = tokens / median(times);
  const { config } = model.layout;
  const embedding = config.vocabSize * config.hiddenSize;
  const flops =
    2 * (parameterCount(config) - 2 * embedding) +
    2 * config.numHiddenLayers * config.numAttentionHeads * config.headDim * tokens;
  console.log(
    `prefill of ${tokens}: ${rate.toFixed(0)} tok/s, ${((rate * flops) / roofs.flops_per_second).toFixed(3)} of the product roof`,
  );
  session.dispose();
}

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { layers: { type: 'string' }, profile: { type: 'boolean', default: false } },
});
const wanted = (name: string): boolean => positionals.length === 0 || positionals.includes(name);
const parsed = parseQwen3Config(JSON.parse(readFileSync(FIXTURE, 'utf8')), FIXTURE);
const config = { ...parsed, numHiddenLayers: Number(values.layers ?? parsed.numHiddenLayers) };
const engine = openEngine({ device: 'cuda' });
const roofs = await measureRoofs(engine, 'bf16');
console.log(
  `${engine.device.name}: ${(roofs.bytes_per_second / 1e9).toFixed(0)} GB/s, ${(roofs.flops_per_second / 1e12).toFixed(0)} TFLOP/s (bf16)`,
);
if (wanted('decode') || wanted('prefill')) {
  // With an NVFP4 head of its own, as NVFP4 checkpoints for decoding have it.
  const model = await randomModel(engine, { ...config, tieWordEmbeddings: false }, 'none');
  if (wanted('decode')) await benchDecode(engine, model, roofs, values.profile);
  if (wanted('prefill')) await benchPrefill(engine, model, roofs);
  model.dispose();
}
if (wanted('train')) await benchTraining(engine, config, roofs, values.profile);
engine.dispose();
