/**
 * Stages without a model, for testing the runner: they keep its contracts (checkpoints, abort, gates) and do sums.
 * Environment: FAKE_STEP_MS slows training, FAKE_FAULT makes something go wrong (see `fault`).
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import type { Engine, Probe } from '../../runtime/engine/types.js';
import { Q4Error } from '../../runtime/errors.js';
import type { Json, Stage, StageContext, StageValues } from '../../stages/context.js';

const fault = process.env['FAKE_FAULT'] ?? '';
const stepMs = Number(process.env['FAKE_STEP_MS'] ?? 0);

const device = {
  kind: 'cpu',
  name: 'Pretend',
  instructions: 'none',
  index: 0,
  threads: 1,
  totalBytes: 1e9,
  freeBytes: 1e9,
} as const;

export const ENGINES = {
  openEngine: (): Engine => ({ device, dispose: () => {} }) as unknown as Engine,
  probe: (): Probe => ({
    cudaBuilt: false,
    cudaTargets: '',
    cudaReason: 'pretended',
    cudaDevices: [],
    cpu: device,
  }),
};

interface FakeModel {
  weight: number;
  disposed: number;
  dispose(): void;
}

const makeModel = (): FakeModel => ({
  weight: 1,
  disposed: 0,
  dispose() {
    this.disposed += 1;
    const log = process.env['FAKE_DISPOSE_LOG'];
    if (log !== undefined) writeFileSync(log, 'disposed\n', { flag: 'a' });
  },
});

type Parameters = Record<string, Json>;
const model = (inputs: StageValues): FakeModel => inputs['model'] as FakeModel;

function stage(
  uses: string,
  takes: readonly (readonly string[])[],
  gives: readonly string[],
  run: (
    params: Parameters,
    inputs: StageValues,
    ctx: StageContext,
  ) => Promise<Awaited<ReturnType<Stage['run']>>>,
  bytes: Record<string, number> = {},
): Stage {
  return {
    uses,
    takes,
    gives,
    plan: () =>
      Promise.resolve({
        summary: `${uses} of nothing`,
        bytes: fault === 'weightless' ? {} : bytes,
        transientBytes: fault === 'huge' && uses === 'train' ? { activations: 1e18 } : {},
        values: Object.fromEntries(gives.map((kind) => [kind, `planned ${kind}`])),
      }),
    run: (params, inputs, ctx) => run(params as Parameters, inputs, ctx),
    ...(uses === 'train' && {
      describe: (params: unknown) =>
        Promise.resolve([{ title: 'step', text: `steps ${String((params as Parameters)['steps'])}` }]),
      preview: (_p: unknown, inputs: StageValues, _c: StageContext, samples: number) =>
        Promise.resolve([{ title: 'data', text: `${samples} samples for ${String(inputs['model'])}` }]),
    }),
  };
}

async function train(params: Parameters, inputs: StageValues, ctx: StageContext) {
  const steps = Number(params['steps']);
  const every = Number((params['checkpoint'] as Parameters)['every']);
  const trained = model(inputs);
  const losses: number[] = [];
  let step = 0;
  const found = await ctx.checkpoints.latest();
  if (found !== null) {
    const state = JSON.parse(await readFile(join(found.path, 'state.json'), 'utf8')) as {
      weight: number;
      losses: number[];
    };
    trained.weight = state.weight;
    losses.push(...state.losses);
    step = found.step;
  }
  const save = () =>
    ctx.checkpoints.commit(
      step,
      { step },
      async (directory) => {
        await writeFile(join(directory, 'state.json'), JSON.stringify({ weight: trained.weight, losses }));
        mkdirSync(join(directory, 'deep'));
        await writeFile(join(directory, 'deep', 'padding.bin'), Buffer.alloc(100_000, step));
      },
      { keepLast: 2, score: losses.at(-1) ?? 0 },
    );
  while (step < steps) {
    if (ctx.signal.aborted && fault !== 'deaf') {
      await save();
      throw ctx.interrupted(`saved at step ${step}`);
    }
    step += 1;
    // Depends on every step before: a lost or repeated one shows.
    trained.weight = (trained.weight * 1103515245 + step) % 2147483648;
    const loss = 4 / (1 + step) + (trained.weight % 100) / 1000;
    losses.push(loss);
    if (fault === 'segfault' && step === 3) process.kill(process.pid, 'SIGSEGV');
    if (fault === 'throw' && step === 3) throw new Error('a mistake in the stage');
    ctx.emit({ ev: 'step', step, steps, loss, grad_norm: loss / 2, lr: 1e-3, tokens_per_s: 1000 });
    if (every > 0 && step % every === 0) await save();
    if (stepMs > 0) await sleep(stepMs);
  }
  await save();
  if (fault === 'diverge') {
    const failure = new Q4Error('Q4801', 'the loss is not finite');
    return { values: { model: trained, metrics: {} }, outputs: { steps, losses: [...losses, NaN] }, failure };
  }
  return { values: { model: trained, metrics: {} }, outputs: { steps, losses, weight: trained.weight } };
}

export const STAGES: readonly Stage[] = [
  stage(
    'load-dat',
    [],
    ['weights'],
    () => Promise.resolve({ values: { weights: 'w' }, outputs: { tensors: 3 } }),
    {
      weights: 1000,
    },
  ),
  stage(
    'build-model',
    [['weights']],
    ['model'],
    () => Promise.resolve({ values: { model: makeModel() }, outputs: {} }),
    {
      masters: 2000,
    },
  ),
  stage('train', [['model']], ['model', 'metrics'], train),
  stage('checkpoint', [['model']], ['checkpoint'], async (params, inputs, ctx) => {
    const path = params['export'] as string;
    await ctx.files.writeText(path, `weight ${model(inputs).weight}\n`);
    return { values: { checkpoint: path }, outputs: { export: path, note: 'a text' } };
  }),
  stage('parity-check', [['model', 'checkpoint']], ['verdict'], (params, inputs) => {
    const passed = fault !== 'gate';
    const outputs = { passed, thresholds: params['thresholds']!, inputs: Object.keys(inputs) };
    const failure = passed ? undefined : new Q4Error('Q4601', 'the gate said no');
    return Promise.resolve({ values: {}, outputs, ...(failure && { failure }) });
  }),
  stage('infer', [['model', 'checkpoint']], ['texts'], (params, inputs, ctx) => {
    const prompts = params['prompts'] as string[];
    const texts = prompts.map((prompt) => ({ prompt, text: `I weigh ${model(inputs).weight}.` }));
    for (const { prompt, text } of texts) {
      ctx.emit({ ev: 'token', prompt, text: text.slice(0, 2) });
      ctx.emit({ ev: 'answer', prompt, text });
    }
    return Promise.resolve({ values: {}, outputs: { texts } });
  }),
];
