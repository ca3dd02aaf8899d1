/** Whole pipelines on a GPU: the same YAML, the same answers, within bf16 noise (or fp32's) of the reference. */
import { copyFileSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { folder, outputsOf, put, q4run, ROOT } from '../stages/q4run.js';

const FIXTURES = join(ROOT, 'test', 'fixtures');

const golden = (precision: string, bounds: string): string => `version: 1
name: golden
runtime: { device: cuda, precision: ${precision} }
stages:
  - { id: weights, uses: load-dat, with: { weights: "${FIXTURES}/d.dat", config: "${FIXTURES}/d.config.json" } }
  - { id: model, uses: build-model, needs: [weights] }
  - { id: golden, uses: parity-check, needs: [model], with: { baseline: { golden: "${FIXTURES}/d.golden.safetensors" }, thresholds: ${bounds} } }
  - id: train
    uses: train
    needs: [golden]
    with:
      data: { path: "${FIXTURES}/d.train.jsonl" }
      steps: 12
      batch_size: 4
      seq_len: 32
      learning_rate: 1.0e-3
      schedule: { kind: constant }
      shuffle: false
      pack: false
      optimizer: { betas: [0.9, 0.95], eps: 1.0e-8, weight_decay: 0.1 }
      max_grad_norm: 1.0
  - { id: save, uses: checkpoint, needs: [train], with: { export: out.dat } }
`;

const reference = JSON.parse(readFileSync(join(FIXTURES, 'd.train.json'), 'utf8')) as { losses: number[] };

for (const [precision, bounds, lossBound] of [
  [
    'bf16',
    '{ hidden_rel_l2: 2.5e-2, logits_rel_l2: 2.5e-2, kl_mean: 2.5e-3, kl_max: 1, top1_agreement: 0.9, greedy_match: false }',
    0.01,
  ],
  ['fp32', '{ hidden_rel_l2: 1.0e-4, logits_rel_l2: 1.0e-4 }', 1e-3],
] as const)
  test(`golden case and its training run, ${precision}`, async () => {
    const cwd = folder({ 'golden.yaml': golden(precision, bounds) });
    const first = await q4run(cwd, 'golden.yaml', '--run-dir', join(cwd, 'a'));
    assert.is(first.code, 0, first.err);
    const { losses } = outputsOf<{ losses: number[] }>(join(cwd, 'a'), 'train');
    losses.forEach((loss, i) =>
      assert.ok(Math.abs(loss / reference.losses[i]! - 1) <= lossBound, `loss ${i}: ${loss}`),
    );
    const { export_sha256: sha } = outputsOf<{ export_sha256: string }>(join(cwd, 'a'), 'save');
    const again = await q4run(cwd, 'golden.yaml', '--run-dir', join(cwd, 'b'));
    assert.is(again.code, 0, again.err);
    assert.is(
      outputsOf<{ export_sha256: string }>(join(cwd, 'b'), 'save').export_sha256,
      sha,
      'bitwise repeatable',
    );
  });

for (const name of ['train-full', 'parity', 'infer', 'one-step'])
  test(`pipelines/${name}.yaml as it stands`, async () => {
    const cwd = folder();
    const { code, err } = await q4run(
      cwd,
      join(ROOT, 'pipelines', `${name}.yaml`),
      '--set',
      'runtime.device=cuda',
      '--run-dir',
      join(cwd, 'run'),
    );
    assert.is(code, 0, err);
  });

for (const [before, after] of [
  ['cpu', 'cuda'],
  ['cuda', 'cpu'],
] as const)
  test(`a run begun on ${before} goes on on ${after}`, async () => {
    const cwd = folder();
    put(cwd, {
      'golden.yaml': golden('fp32', '{}')
        .replace('device: cuda', 'device: auto')
        .replace('steps: 12', 'steps: 12\n      checkpoint: { every: 4 }'),
    });
    copyFileSync(join(FIXTURES, 'd.train.json'), join(cwd, 'd.train.json'));
    const run = join(cwd, 'run');
    const begun = await q4run(cwd, 'golden.yaml', '--run-dir', run, '--set', `runtime.device=${before}`);
    assert.is(begun.code, 0, begun.err);
    // As if the run had been killed after step 8.
    rmSync(join(run, 'checkpoints', 'train', 'step-12'), { recursive: true });
    rmSync(join(run, 'report.json'));
    const resumed = await q4run(cwd, 'golden.yaml', '--run-dir', run, '--set', `runtime.device=${after}`);
    assert.is(resumed.code, 0, resumed.err);
    assert.is((resumed.events.find(({ ev }) => ev === 'resume') as { step?: number } | undefined)?.step, 8);
    const { losses } = outputsOf<{ losses: number[] }>(run, 'train');
    losses.forEach((loss, i) =>
      assert.ok(Math.abs(loss / reference.losses[i]! - 1) <= 5e-3, `loss ${i}: ${loss}`),
    );
  });

test.run();
