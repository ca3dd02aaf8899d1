/** Training goes on where it was stopped, and ends with the same bytes. */
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'uvu';
import * as assert from 'uvu/assert';

import type { EventBody } from '../../runtime/runner/events/event.js';
import { runHere, type Here, type HereOptions } from './in-process.js';
import {
  fingerprint,
  leftovers,
  pipelineText,
  trainingFolder,
  type TrainingOptions,
} from './training-run.js';
import { writeReportOf } from './report-of.js';

/** Runs the pipeline, stopped as by Ctrl-C right after the given steps, until it ends. */
async function stoppedAfter(cwd: string, run: string, stops: readonly number[], options: HereOptions = {}) {
  const exits: number[] = [];
  for (const stop of [...stops, Infinity]) {
    const controller = new AbortController();
    const here = await runHere(cwd, 'p.yaml', run, {
      ...options,
      signal: controller.signal,
      onEvent: ({ ev, step }) => {
        if (ev === 'step' && Number(step) >= stop) controller.abort('interrupt');
      },
    });
    exits.push(here.exit);
    writeReportOf(join(cwd, run), here);
    if (here.exit === 0) break;
  }
  return exits;
}

async function whole(cwd: string, run: string, options: HereOptions = {}): Promise<Here> {
  const here = await runHere(cwd, 'p.yaml', run, options);
  assert.equal(here.errors, []);
  writeReportOf(join(cwd, run), here);
  return here;
}

test('a run stopped at any step ends with the bytes of the undisturbed one', async () => {
  const cwd = trainingFolder({ train: 'eval: { fraction: 0.2, every: 4 }' });
  await whole(cwd, 'whole');
  const expected = fingerprint(join(cwd, 'whole'));
  assert.is(expected.losses.length, 20);
  for (const [i, stops] of [[1], [5], [7, 8, 13], [19], [20]].entries()) {
    const exits = await stoppedAfter(cwd, `stopped-${i}`, stops);
    assert.equal(exits, [...stops.map(() => 130), 0], `stopped after ${stops.join()}`);
    assert.equal(fingerprint(join(cwd, `stopped-${i}`)), expected, `stopped after ${stops.join()}`);
    assert.equal(leftovers(join(cwd, `stopped-${i}`)), []);
  }
});

test('the same run twice, and on one thread or three, gives the same bytes', async () => {
  const prints = [];
  for (const threads of [0, 0, 1, 3]) {
    const cwd = trainingFolder({ steps: 8, runtime: `{ device: cpu, threads: ${threads} }` });
    await whole(cwd, 'run');
    prints.push(fingerprint(join(cwd, 'run')));
  }
  for (const print of prints) assert.equal(print, prints[0]);
});

test('another seed is another run', async () => {
  const cwd = trainingFolder({ steps: 3 });
  await whole(cwd, 'a');
  await whole(cwd, 'b', { sets: ['runtime.seed=7'] });
  assert.not.equal(fingerprint(join(cwd, 'a')).losses, fingerprint(join(cwd, 'b')).losses);
});

test('eight rows at once and eight times one row are the same step', async () => {
  const losses: number[][] = [];
  const norms: number[][] = [];
  for (const [batch, accumulate] of [
    [8, 1],
    [1, 8],
    [2, 4],
  ] as const) {
    const cwd = trainingFolder({ steps: 6, batch, accumulate, train: 'shuffle: false' });
    const here = await whole(cwd, 'run');
    losses.push(here.outputs<{ losses: number[] }>('train').losses);
    norms.push(here.outputs<{ grad_norms: number[] }>('train').grad_norms);
  }
  for (const other of [1, 2])
    for (let step = 0; step < 6; step++) {
      // Sums in another order: float noise, which training carries on.
      const bound = step === 0 ? 1e-6 : 1e-3;
      assert.ok(Math.abs(losses[other]![step]! / losses[0]![step]! - 1) < bound, `loss of step ${step}`);
      assert.ok(Math.abs(norms[other]![step]! / norms[0]![step]! - 1) < bound * 10, `norm of step ${step}`);
    }
});

test('recompute changes not one bit', async () => {
  const cwd = trainingFolder({ steps: 4 });
  await whole(cwd, 'none');
  await whole(cwd, 'block', { sets: ['stages.train.with.recompute=block'] });
  assert.equal(fingerprint(join(cwd, 'block')), fingerprint(join(cwd, 'none')));
});

const CONTINUED: readonly [what: string, options: TrainingOptions][] = [
  ['frozen parameters', { build: ', freeze: ["model.embed_tokens.*", "*.q_proj.weight"]' }],
  ['bf16 masters, which round stochastically', { build: ', masters: bf16' }],
  ['a tied head', { config: { tie_word_embeddings: true } }],
  ['plain weights', { init: ', quantize: false' }],
  ['one global scale for each fusion group', { build: ', shared_global_scale: true' }],
  ['packed and shuffled data over epochs', { train: 'epochs: 2.5', steps: 0 }],
  ['the scalar loss', { train: 'loss: scalar' }],
  ['accumulation', { batch: 2, accumulate: 2 }],
];
for (const [what, options] of CONTINUED)
  test(`a stopped run continues alike with ${what}`, async () => {
    const cwd = trainingFolder({ ...options, steps: 9, every: 0 });
    if (options.steps === 0) {
      const text = pipelineText({ ...options, steps: 9 }).replace('      steps: 9\n', '');
      writeFileSync(join(cwd, 'p.yaml'), text.replace('pack: false', 'pack: true'));
    }
    await whole(cwd, 'whole');
    const exits = await stoppedAfter(cwd, 'stopped', [3, 6]);
    assert.equal(exits, [130, 130, 0]);
    assert.equal(fingerprint(join(cwd, 'stopped')), fingerprint(join(cwd, 'whole')));
  });

test('a checkpoint of another model or of other trainable parameters is refused', async () => {
  const cwd = trainingFolder({ steps: 4 });
  await whole(cwd, 'run');
  const frozen = await runHere(cwd, 'p.yaml', 'run', {
    sets: ['stages.model.with.freeze=["model.norm.weight"]'],
  });
  assert.is(frozen.errors[0]?.['code'], 'Q4503');
  assert.match(String(frozen.errors[0]?.['hint']), /--fresh|freeze/);
  const config = JSON.parse(readFileSync(join(cwd, 'config.json'), 'utf8')) as Record<string, unknown>;
  writeFileSync(join(cwd, 'config.json'), JSON.stringify({ ...config, rope_theta: 1234 }));
  const other = await runHere(cwd, 'p.yaml', 'run');
  assert.is(other.errors[0]?.['code'], 'Q4503');
  assert.match(String(other.errors[0]?.['message']), /another model/);
});

test('a damaged checkpoint is told and passed over', async () => {
  const cwd = trainingFolder({ steps: 10, every: 3 });
  await whole(cwd, 'whole');
  const expected = fingerprint(join(cwd, 'whole'));
  await whole(cwd, 'run');
  const checkpoints = join(cwd, 'run', 'checkpoints', 'train');
  const newest = join(checkpoints, 'step-10', 'optimizer.dat');
  const bytes = readFileSync(newest);
  bytes[bytes.length - 5]! ^= 1;
  writeFileSync(newest, bytes);
  const here = await whole(cwd, 'run');
  assert.ok(here.events.some(({ ev, code }) => ev === 'warning' && code === 'Q4414'));
  assert.is(here.events.find(({ ev }) => ev === 'resume')?.['step'], 9);
  assert.equal(fingerprint(join(cwd, 'run')), expected);
});

test('checkpoints: the last and the best stay', async () => {
  const cwd = trainingFolder({
    steps: 12,
    every: 2,
    train: 'eval: { fraction: 0.2, every: 2 }',
  });
  const text = readFileSync(join(cwd, 'p.yaml'), 'utf8').replace(
    'keep_last: 2',
    'keep_last: 1, keep_best: 1',
  );
  writeFileSync(join(cwd, 'p.yaml'), text);
  const here = await whole(cwd, 'run');
  const evals = here.outputs<{ eval_losses: { step: number; loss: number }[] }>('train').eval_losses;
  const best = evals.reduce((a, b) => (b.loss <= a.loss ? b : a));
  const kept = readdirSync(join(cwd, 'run', 'checkpoints', 'train')).sort();
  assert.equal(kept, [...new Set([`step-${best.step}`, 'step-12'])].sort());
});

test('training that diverges stops with exit 9, applies nothing and pins what it had', async () => {
  const cwd = trainingFolder({ steps: 6, every: 1 });
  await whole(cwd, 'healthy');
  // NaN in a norm: the first step has no finite loss.
  const source = join(cwd, 'healthy', 'trained.dat');
  writeFileSync(join(cwd, 'bad.dat'), withNaN(readFileSync(source)));
  writeFileSync(
    join(cwd, 'p.yaml'),
    readFileSync(join(cwd, 'p.yaml'), 'utf8').replace(
      /  - \{ id: model.*\n/,
      '  - { id: weights, uses: load-dat, with: { weights: bad.dat, config: config.json, allow_non_finite: true } }\n' +
        '  - { id: model, uses: build-model, needs: [weights] }\n',
    ),
  );
  for (const round of [1, 2]) {
    const here = await runHere(cwd, 'p.yaml', 'run');
    const [error] = here.errors as [EventBody];
    assert.is(error['code'], 'Q4801', JSON.stringify(here.errors));
    assert.is(here.exit, 9);
    assert.match(String(error['message']), /step 1; the step was not applied/);
    const pinned = join(cwd, 'run', 'checkpoints', 'train', 'step-0');
    assert.is(error['file'], pinned);
    const manifest = JSON.parse(readFileSync(join(pinned, 'manifest.json'), 'utf8')) as { pinned: boolean };
    assert.is(manifest.pinned, true, `round ${round}`);
    assert.is(here.outputs<{ steps: number }>('train').steps, 0);
    assert.ok(!existsSync(join(cwd, 'run', 'trained.dat')));
  }
  const skipping = await runHere(cwd, 'p.yaml', 'skipping', {
    sets: ['stages.train.with.stop_on_divergence=false', 'stages.train.with.steps=3'],
  });
  assert.is(skipping.outputs<{ skipped_steps: number }>('train').skipped_steps, 3);
});

test('divergence right after a checkpoint pins that very checkpoint', async () => {
  // Without clipping, at the highest rate that the schema takes, and with huge activations.
  const cwd = trainingFolder({ steps: 400, every: 1, train: 'max_grad_norm: 0' });
  const text = readFileSync(join(cwd, 'p.yaml'), 'utf8')
    .replace('learning_rate: 3.0e-3', 'learning_rate: 10')
    .replace('kind: cosine, warmup_steps: 3', 'kind: constant')
    .replace('std: 0.2', 'std: 10');
  writeFileSync(join(cwd, 'p.yaml'), text);
  const here = await runHere(cwd, 'p.yaml', 'run', {
    sets: ['stages.train.with.optimizer.weight_decay=10'],
  });
  assert.is(here.exit, 9, JSON.stringify(here.errors));
  const steps = here.outputs<{ steps: number; losses: number[] }>('train');
  assert.is(steps.losses.length, steps.steps);
  assert.ok(steps.losses.every(Number.isFinite));
  const path = join(cwd, 'run', 'checkpoints', 'train', `step-${steps.steps}`, 'manifest.json');
  assert.is((JSON.parse(readFileSync(path, 'utf8')) as { pinned: boolean }).pinned, true);
});

/** The first norm's first value becomes NaN. */
function withNaN(file: Buffer): Buffer {
  const name = 'model.layers.0.input_layernorm.weight';
  const at = file.indexOf(name) + name.length;
  // Type, rank and one dimension of a byte each.
  file.writeFloatLE(Number.NaN, at + 3);
  return file;
}

test.run();
