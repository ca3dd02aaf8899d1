/** Golden cases as pipelines: the shipped one, by another implementation, and random ones made by the oracle. */
import { copyFileSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'uvu';
import * as assert from 'uvu/assert';

import type { EventBody } from '../../runtime/runner/events/event.js';
import { openEngine } from '../../runtime/engine/engine.js';
import { dequantise } from '../oracle/nvfp4.js';
import { qwen3, type OracleConfig } from '../oracle/qwen3.js';
import {
  floats,
  goldenCase,
  ids64,
  safetensorsOf,
  type CaseOptions,
  type GoldenTensor,
} from './golden-case.js';
import { runHere, type Here } from './in-process.js';
import { errorsIn, folder, outputsOf, put, q4run, ROOT } from './q4run.js';
import { relativeL2 } from './tensors.js';

const FIXTURES = join(ROOT, 'test', 'fixtures');

interface Verdict {
  readonly passed: boolean;
  readonly bitwise: boolean;
  readonly greedy_match: boolean | null;
  readonly first_divergence: { layer: string; op: string | null; rel_l2: number } | null;
  readonly layers: readonly { name: string; rel_l2: number }[];
  readonly logits: { rel_l2: number; top1_agreement: number };
}

const SHIPPED = `version: 1
name: golden
vars: { case: "${FIXTURES}" }
stages:
  - { id: weights, uses: load-dat, with: { weights: "\${vars.case}/d.dat", config: "\${vars.case}/d.config.json" } }
  - { id: model, uses: build-model, needs: [weights] }
  - { id: golden, uses: parity-check, needs: [model], with: { baseline: { golden: "\${vars.case}/d.golden.safetensors" } } }
  - id: train
    uses: train
    needs: [golden]
    with:
      data: { path: "\${vars.case}/d.train.jsonl" }
      steps: 12
      batch_size: 4
      seq_len: 32
      learning_rate: 1.0e-3
      schedule: { kind: constant }
      shuffle: false
      pack: false
      optimizer: { betas: [0.9, 0.95], eps: 1.0e-8, weight_decay: 0.1 }
      max_grad_norm: 1.0
`;

const GATE = `version: 1
name: case
stages:
  - { id: weights, uses: load-dat, with: { weights: model.dat, config: config.json } }
  - { id: model, uses: build-model, needs: [weights], with: { masters: none } }
  - { id: golden, uses: parity-check, needs: [model], with: { baseline: { golden: golden.safetensors } } }
`;

const reference = JSON.parse(readFileSync(join(FIXTURES, 'd.train.json'), 'utf8')) as {
  losses: number[];
  grad_norms: number[];
};

function checkShipped(golden: Verdict, train: { losses: number[]; grad_norms: number[] }): void {
  assert.is(golden.passed, true);
  assert.is(golden.greedy_match, true);
  assert.is(golden.layers.length, 5);
  for (const { name, rel_l2 } of golden.layers) assert.ok(rel_l2 <= 1e-5, `${name} ${rel_l2}`);
  assert.ok(golden.logits.rel_l2 <= 1e-5, `logits ${golden.logits.rel_l2}`);
  assert.is(golden.logits.top1_agreement, 1);
  assert.is(train.losses.length, 12);
  reference.losses.forEach((loss, i) =>
    assert.ok(Math.abs(train.losses[i]! / loss - 1) <= 1e-3, `loss ${i}: ${train.losses[i]}, not ${loss}`),
  );
  reference.grad_norms.forEach((norm, i) =>
    assert.ok(
      Math.abs(train.grad_norms[i]! / norm - 1) <= 5e-3,
      `norm ${i}: ${train.grad_norms[i]}, not ${norm}`,
    ),
  );
}

test('the shipped golden case holds through the command line, forward, greedy and in training', async () => {
  const cwd = folder({ 'p.yaml': SHIPPED });
  const outcome = await q4run(cwd, 'p.yaml', '--run-dir', 'run');
  assert.is(outcome.code, 0, outcome.err);
  checkShipped(outputsOf<Verdict>(join(cwd, 'run'), 'golden'), outputsOf(join(cwd, 'run'), 'train'));
});

test('the shipped golden case holds on the plain scalar path', async () => {
  const cwd = folder({ 'p.yaml': SHIPPED });
  const here = await runHere(cwd, 'p.yaml', 'run', { engine: { reference: true } });
  assert.equal(here.errors, []);
  checkShipped(here.outputs('golden'), here.outputs('train'));
});

test('the oracle that makes our own cases agrees with the shipped one', async () => {
  const engine = openEngine({ device: 'cpu', threads: 1 });
  try {
    const { files } = engine;
    const config = JSON.parse(readFileSync(join(FIXTURES, 'd.config.json'), 'utf8')) as OracleConfig;
    const index = await files.indexDat(join(FIXTURES, 'd.dat'));
    const weights = new Map<string, ArrayLike<number>>();
    for (const { name, type } of index.entries) {
      const part = /^(.*)\.qdata$/.exec(name)?.[1];
      if (type === 'f32') weights.set(name, (await files.readEntry(index, name)) as Float32Array);
      else if (type === 'f16') weights.set(name, halves((await files.readEntry(index, name)) as Uint16Array));
      else if (part !== undefined) {
        const scale = (await files.readEntry(index, `${part}.scale`)) as Uint8Array;
        const held = index.entries.some((entry) => entry.name === `${part}.global_scale`);
        const global = held
          ? ((await files.readEntry(index, `${part}.global_scale`)) as Float32Array)[0]!
          : 1;
        const qdata = (await files.readEntry(index, name)) as Uint8Array;
        weights.set(part, dequantise({ qdata, scale, globalScale: global }));
      }
    }
    const golden = await files.indexSafetensors(join(FIXTURES, 'd.golden.safetensors'));
    const [, tokens] = golden.entries.find(({ name }) => name === 'input_ids')!.shape as [number, number];
    const all = (await files.readEntry(golden, 'input_ids')) as BigInt64Array;
    const ids = Array.from(all.subarray(0, tokens), Number);
    const { hidden, logits } = qwen3(config, weights, ids);
    const expected = (await files.readEntry(golden, 'logits')) as Float32Array;
    assert.ok(relativeL2(logits, expected.subarray(0, logits.length)) < 2e-6);
    const last = (await files.readEntry(golden, 'hidden_states.4')) as Float32Array;
    assert.ok(relativeL2(hidden[4]!, last.subarray(0, hidden[4]!.length)) < 2e-6);
  } finally {
    engine.dispose();
  }
});

function halves(bits: Uint16Array): Float64Array {
  return Float64Array.from(bits, (half) => {
    const exponent = (half >> 10) & 31;
    const mantissa = half & 1023;
    const size = exponent === 0 ? mantissa * 2 ** -24 : (1 + mantissa / 1024) * 2 ** (exponent - 15);
    return half >> 15 ? -size : size;
  });
}

const CASES: readonly [name: string, options: CaseOptions][] = [
  ['two sequences, two-level scales', {}],
  ['a tied head', { config: { tie_word_embeddings: true }, seed: 2 }],
  ['one sequence, single-level scales', { batch: 1, tokens: 29, seed: 3, twoLevel: false }],
  ['no greedy continuation', { greedyPrompt: null, seed: 4 }],
  ['one token', { tokens: 1, greedyPrompt: 1, seed: 5 }],
  ['as many kv heads as heads', { config: { num_key_value_heads: 6, rope_theta: 1e4 }, seed: 6 }],
  ['one kv head, one layer, a wide head', { config: { num_attention_heads: 3, num_key_value_heads: 1, head_dim: 64, num_hidden_layers: 1 }, seed: 7 }], // prettier-ignore
];

for (const [name, options] of CASES)
  for (const path of ['fast', 'reference'])
    test(`a golden case with ${name} holds (${path})`, async () => {
      const cwd = folder({ ...goldenCase(options).files, 'p.yaml': GATE });
      const here = await runHere(cwd, 'p.yaml', 'run', { engine: { reference: path === 'reference' } });
      assert.equal(here.errors, []);
      const verdict = here.outputs<Verdict>('golden');
      assert.ok(verdict.passed);
      assert.is(verdict.greedy_match, options.greedyPrompt === null ? null : true);
      assert.is(verdict.layers.length, (options.config?.num_hidden_layers ?? 3) + 1);
    });

const model = goldenCase({ seed: 8 });

/** The gate's answer to this golden file, for the model of `model`. */
async function judged(tensors: ReadonlyMap<string, GoldenTensor>): Promise<Here> {
  const cwd = folder({ ...model.files, 'golden.safetensors': safetensorsOf(tensors), 'p.yaml': GATE });
  return runHere(cwd, 'p.yaml');
}

const changed = (changes: Record<string, GoldenTensor | null>): Map<string, GoldenTensor> => {
  const tensors = new Map(model.tensors);
  for (const [name, tensor] of Object.entries(changes)) {
    if (tensor === null) tensors.delete(name);
    else tensors.set(name, tensor);
  }
  return tensors;
};

function perturbed(name: string, at: number, by: number): GoldenTensor {
  const { data, ...rest } = model.tensors.get(name)!;
  const values = (data as Float32Array).slice();
  values[at]! += by;
  return { ...rest, data: values };
}

test('one wrong value in the output of a layer is exit 6, and names the layer', async () => {
  const here = await judged(changed({ 'hidden_states.2': perturbed('hidden_states.2', 40, 0.1) }));
  assert.is(here.exit, 6);
  const [error] = here.errors as [EventBody];
  assert.is(error['code'], 'Q4601');
  assert.match(String(error['message']), /hidden_rel_l2/);
  assert.match(String(error['message']), /model\.layers\.1\b/);
  const verdict = here.outputs<Verdict>('golden');
  assert.is(verdict.passed, false);
  assert.is(verdict.first_divergence?.layer, 'model.layers.1');
  // Both of our own paths agree inside, so no op is to blame.
  assert.is(verdict.first_divergence?.op, null);
});

test('a wrong embedding, wrong logits and a wrong continuation are told apart', async () => {
  const embedding = await judged(changed({ 'hidden_states.0': perturbed('hidden_states.0', 3, 1) }));
  assert.is(embedding.outputs<Verdict>('golden').first_divergence?.layer, 'model.embed_tokens');
  const logits = await judged(changed({ logits: perturbed('logits', 100, 0.5) }));
  assert.is(logits.exit, 6);
  assert.is(logits.outputs<Verdict>('golden').first_divergence?.layer, 'lm_head');
  const { data } = model.tensors.get('greedy')!;
  const ids = Array.from(data as BigInt64Array, Number);
  ids[20] = (ids[20]! + 1) % 61;
  const greedy = await judged(changed({ greedy: ids64([1, ids.length], ids) }));
  assert.is(greedy.exit, 6);
  assert.is(greedy.outputs<Verdict>('golden').greedy_match, false);
  assert.match(String(greedy.errors[0]!['message']), /greedy/);
});

test('NaN in a golden file passes nothing', async () => {
  const here = await judged(changed({ logits: perturbed('logits', 7, Number.NaN) }));
  assert.is(here.exit, 6);
});

const UNFIT: readonly [what: string, changes: Record<string, GoldenTensor | null>, entry: RegExp][] = [
  [
    'a hidden state of another shape',
    { 'hidden_states.1': floats([2, 13, 16], new Float32Array(416)) },
    /hidden_states\.1/,
  ],
  ['logits of another vocabulary', { logits: floats([2, 13, 60], new Float32Array(1560)) }, /logits/],
  ['a missing hidden state', { 'hidden_states.3': null }, /hidden_states\.3/],
  [
    'more layers than the model',
    { 'hidden_states.4': floats([2, 13, 32], new Float32Array(832)) },
    /hidden_states\.4/,
  ],
  ['no input_ids', { input_ids: null }, /input_ids/],
  ['input_ids of one dimension', { input_ids: ids64([26], new Array<number>(26).fill(1)) }, /input_ids/],
  [
    'input_ids that are no whole numbers',
    { input_ids: floats([2, 13], new Float32Array(26).fill(1.5)) },
    /input_ids/,
  ],
  ['no rows', { input_ids: ids64([0, 13], []), logits: floats([0, 13, 61], []), ...Object.fromEntries([0, 1, 2, 3].map((i) => [`hidden_states.${i}`, floats([0, 13, 32], [])])) }, /input_ids/], // prettier-ignore
  ['a token that the model lacks', { input_ids: ids64([2, 13], new Array<number>(26).fill(61)) }, /token/],
  ['a negative token', { greedy: ids64([1, 25], new Array<number>(25).fill(-1)) }, /token/],
  ['a greedy batch', { greedy: ids64([2, 25], new Array<number>(50).fill(1)) }, /greedy/],
];

for (const [what, changes, entry] of UNFIT)
  test(`a golden file with ${what} is refused`, async () => {
    const here = await judged(changed(changes));
    const [error] = here.errors as [EventBody];
    assert.is(error['code'], 'Q4506', String(error['message']));
    assert.is(error['exit'], 4);
    assert.match(String(error['message']), entry);
    assert.match(String(error['file']), /golden\.safetensors$/);
    assert.ok(error['expected'], 'says what was expected');
  });

test('a golden file that is no safetensors file is refused with its place', async () => {
  const cwd = folder({ ...model.files, 'p.yaml': GATE });
  put(cwd, { 'golden.safetensors': 'no' });
  const outcome = await q4run(cwd, 'p.yaml', '--run-dir', 'run');
  assert.is(outcome.code, 4, outcome.err);
  const [error] = errorsIn(outcome);
  assert.match(String(error!['code']), /^Q42/);
  assert.match(String(error!['file']), /golden\.safetensors$/);
});

test('a copy of the shipped case works from any folder, by relative paths', async () => {
  const cwd = folder({});
  for (const [from, to] of [
    ['d.dat', 'model.dat'],
    ['d.config.json', 'config.json'],
    ['d.golden.safetensors', 'golden.safetensors'],
  ] as const)
    copyFileSync(join(FIXTURES, from), join(cwd, to));
  put(cwd, { 'deep/p.yaml': GATE.replace(/model\.dat|config\.json|golden\.safetensors/g, '../$&') });
  const here = await runHere(cwd, 'deep/p.yaml');
  assert.equal(here.errors, []);
  assert.ok(here.outputs<Verdict>('golden').passed);
});

test.run();
