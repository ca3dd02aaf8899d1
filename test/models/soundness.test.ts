import { test } from 'uvu';
import * as assert from 'uvu/assert';
import type { Lowered } from '../../runtime/graph/lower.js';
import { parseQwen3Config } from '../../runtime/models/config.js';
import { decodeProgram, sampleProgram } from '../../runtime/models/decode-program.js';
import { forwardProgram } from '../../runtime/models/forward-program.js';
import { initProgram } from '../../runtime/models/init-program.js';
import { defaultStorage, layOutModel, type Model } from '../../runtime/models/model.js';
import { dequantizeProgram, quantizeProgram } from '../../runtime/models/quantise-programs.js';
import { trainProgram } from '../../runtime/models/train-program.js';
import { updateProgram } from '../../runtime/models/update-program.js';
import { verifyProgram } from '../graph/verify-program.js';
import { TINY_JSON, tinyModel } from './tiny-model.js';

const TINY_AND_FOUR_BILLION: [string, Model][] = [
  ['tiny', tinyModel({ tie_word_embeddings: true })],
  ['4B', fourBillion()],
];

function fourBillion(): Model {
  const config = parseQwen3Config({
    ...TINY_JSON,
    vocab_size: 151936,
    hidden_size: 2560,
    intermediate_size: 9728,
    num_hidden_layers: 36,
    num_attention_heads: 32,
    num_key_value_heads: 8,
    head_dim: 128,
  });
  const storage = defaultStorage(config, { quantize: true, plain: 'bf16' });
  return layOutModel({ config, storage, masters: 'bf16', sharedGlobalScale: true });
}

for (const [name, model] of TINY_AND_FOUR_BILLION) {
  const target = { model, device: 'cuda', activation: 'bf16' } as const;
  const cache = { capacity: 512, rows: 2 };
  const programs: [string, () => Lowered][] = [
    ['training', () => trainProgram({ ...target, batch: 2, tokens: 128, accumulate: true })],
    [
      'training with blocks recomputed',
      () => trainProgram({ ...target, batch: 2, tokens: 128, accumulate: false, recompute: 'block' }),
    ],
    [
      'evaluation',
      () => trainProgram({ ...target, batch: 2, tokens: 128, accumulate: false, gradients: false }),
    ],
    [
      'prefill',
      () => forwardProgram({ ...target, batch: 1, tokens: 256, cache: { ...cache, row: 1 }, logits: 1 }),
    ],
    ['decode', () => decodeProgram({ ...target, batch: 2, cache })],
    ['sampling', () => sampleProgram({ ...target, batch: 2 })],
    ['the update', () => updateProgram({ model, device: 'cuda', maxGradNorm: 1 })],
    ['quantising', () => quantizeProgram({ model, device: 'cuda' })],
    ['dequantising', () => dequantizeProgram({ model, device: 'cuda' })],
    ['random weights', () => initProgram({ model, device: 'cuda', seed: 1, std: 0.02 })],
  ];
  for (const [what, build] of programs)
    test(`${what} of the ${name} model is sound and planned to the byte`, () => {
      const { program, liveBytes, tensors } = build();
      assert.equal(verifyProgram(program), []);
      assert.ok(program.arenaBytes <= 1.02 * liveBytes, `${program.arenaBytes} for ${liveBytes} alive`);
      const used = program.tensors.flatMap(({ storage }) => (storage.kind === 'store' ? [storage.name] : []));
      assert.equal(tensors.map((tensor) => tensor.name).sort(), [...new Set(used)].sort());
    });
}

test('every backward op has its phase, and scopes are kept for profiles', () => {
  const model = tinyModel();
  const { program } = trainProgram({
    model,
    device: 'cpu',
    activation: 'f32',
    batch: 1,
    tokens: 4,
    accumulate: false,
  });
  for (const { op, phase, scope } of program.ops) {
    const backward = /_backward$|_dgrad$|_wgrad$/.test(op);
    assert.is(phase === 'backward', backward, op);
    assert.match(scope, /^(model\.|lm_head)/);
  }
  assert.equal(
    program.ops.filter(({ phase }) => phase === 'loss').map(({ op }) => op),
    ['linear_cross_entropy'],
  );
});

test.run();
