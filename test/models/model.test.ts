import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { elementCount, tensorBytes } from '../../runtime/program.js';
import { planMemory } from '../../runtime/graph/memory-plan.js';
import { cacheTensors } from '../../runtime/models/kv-cache.js';
import { decodeProgram } from '../../runtime/models/decode-program.js';
import { defaultStorage, layOutModel, modelTensors, unmatchedPatterns } from '../../runtime/models/model.js';
import { listParameters, wiringFingerprint, wiringText } from '../../runtime/models/parameters.js';
import { trainProgram } from '../../runtime/models/train-program.js';
import { updateProgram } from '../../runtime/models/update-program.js';
import { TINY_JSON, tinyConfig, tinyModel } from './tiny-model.js';
import { parseQwen3Config } from '../../runtime/models/config.js';

const qwen3With4B = (tied: boolean) =>
  parseQwen3Config({
    ...TINY_JSON,
    vocab_size: 151936,
    hidden_size: 2560,
    intermediate_size: 9728,
    num_hidden_layers: 36,
    num_attention_heads: 32,
    num_key_value_heads: 8,
    head_dim: 128,
    tie_word_embeddings: tied,
  });

test('Qwen3-4B has the parameters of its checkpoint', () => {
  const count = (tied: boolean): [number, number] => {
    const parameters = listParameters(qwen3With4B(tied));
    return [parameters.length, parameters.reduce((sum, { shape }) => sum + elementCount(shape), 0)];
  };
  assert.equal(count(false), [399, 4_411_424_256]);
  assert.equal(count(true), [398, 4_022_468_096]);
});

test('parameters are called and shaped as in Hugging Face files', () => {
  const parameters = new Map(listParameters(tinyConfig()).map((parameter) => [parameter.name, parameter]));
  const layer = (suffix: string) => `model.layers.1.${suffix}.weight`;
  const shapes: [string, number[]][] = [
    ['model.embed_tokens.weight', [23, 16]],
    ['lm_head.weight', [23, 16]],
    ['model.norm.weight', [16]],
    [layer('input_layernorm'), [16]],
    [layer('post_attention_layernorm'), [16]],
    [layer('self_attn.q_proj'), [32, 16]],
    [layer('self_attn.k_proj'), [16, 16]],
    [layer('self_attn.v_proj'), [16, 16]],
    [layer('self_attn.o_proj'), [16, 32]],
    [layer('self_attn.q_norm'), [8]],
    [layer('self_attn.k_norm'), [8]],
    [layer('mlp.gate_proj'), [32, 16]],
    [layer('mlp.up_proj'), [32, 16]],
    [layer('mlp.down_proj'), [16, 32]],
  ];
  assert.is(parameters.size, 3 + 2 * 11);
  for (const [name, shape] of shapes) {
    assert.equal(parameters.get(name)?.shape, shape, name);
    assert.is(parameters.get(name)!.decay, shape.length === 2, name);
  }
  assert.is(parameters.get(layer('self_attn.v_proj'))!.group, 'model.layers.1.self_attn.qkv');
  assert.is(parameters.get(layer('mlp.up_proj'))!.group, 'model.layers.1.mlp.gate_up');
  assert.is(parameters.get(layer('mlp.down_proj'))!.group, null);
  assert.equal(
    [...parameters.values()].map(({ index }) => index),
    [...parameters.keys()].map((_, index) => index),
  );
});

test('plain parameters that train are their own masters', () => {
  for (const masters of ['fp32', 'bf16'] as const) {
    const storage = defaultStorage(tinyConfig(), { quantize: true, plain: 'f16' });
    const model = tinyModel({}, { storage, masters, freeze: ['lm_head*', 'model.layers.0.*'] });
    const find = (name: string) => model.parameters.find((parameter) => parameter.name === name)!;
    const embedding = find('model.embed_tokens.weight');
    assert.is(embedding.training!.master, embedding.weight);
    assert.is(embedding.weight.dtype, masters === 'fp32' ? 'f32' : 'bf16');
    assert.is(find('model.norm.weight').weight.dtype, 'f32');
    const projection = find('model.layers.1.mlp.up_proj.weight');
    assert.is(projection.weight.dtype, 'nvfp4');
    assert.is(projection.training!.master.name, 'master.model.layers.1.mlp.up_proj.weight');
    assert.is(projection.training!.master.dtype, masters === 'fp32' ? 'f32' : 'bf16');
    assert.is(find('lm_head.weight').training, null);
    assert.is(find('lm_head.weight').slots, null);
    assert.is(model.trainable.length, 1 + 11 + 1);
    assert.is(model.requantised.length, 7);
  }
});

test('a model that only answers keeps what its file holds, and nothing beside', () => {
  const storage = defaultStorage(tinyConfig(), { quantize: true, plain: 'f16' });
  const model = tinyModel({}, { storage, masters: 'none' });
  assert.equal(model.trainable, []);
  assert.equal(
    modelTensors(model).map(({ name }) => name),
    model.parameters.map(({ name }) => name),
  );
  assert.is(model.parameters[0]!.weight.dtype, 'f16');
});

test('storage that cannot be is refused', () => {
  const refused = (name: string, dtype: 'nvfp4' | 'i32'): void => {
    const storage = defaultStorage(tinyConfig(), { quantize: true, plain: 'f32' });
    storage.set(name, { dtype, globalScale: 'none' });
    assert.throws(
      () => tinyModel({}, { storage }),
      (error: { code?: string; message: string }) => error.code === 'Q4510' && error.message.includes(name),
    );
  };
  refused('model.norm.weight', 'nvfp4');
  refused('model.embed_tokens.weight', 'nvfp4');
  refused('lm_head.weight', 'i32');
  assert.throws(
    () => layOutModel({ config: tinyConfig(), storage: new Map(), masters: 'fp32' }),
    /is not known/,
  );
});

test('patterns that freeze nothing are found', () => {
  assert.equal(unmatchedPatterns(tinyConfig(), ['model.layers.*', '*.q_norm.*', 'model.layer.0.*', 'head']), [
    'model.layer.0.*',
    'head',
  ]);
});

test('the fingerprint follows the wiring, not the shape of a program', () => {
  const print = wiringFingerprint(tinyConfig());
  assert.match(print, /^[0-9a-f]{16}$/);
  assert.is(wiringFingerprint(tinyConfig({ max_position_embeddings: 128, eos_token_id: 2 })), print);
  const changes = [
    { rope_theta: 1e6 },
    { rms_norm_eps: 1e-5 },
    { tie_word_embeddings: true },
    { num_hidden_layers: 3 },
    { num_key_value_heads: 4 },
    { vocab_size: 24 },
  ];
  const prints = changes.map((change) => wiringFingerprint(tinyConfig(change)));
  assert.is(new Set([print, ...prints]).size, changes.length + 1);
  assert.match(wiringText(tinyConfig()), /model\.layers\.1\.self_attn\.q_norm head_norm_rope/);
});

test('the memory plan sums what the store and the largest arena take', () => {
  const model = tinyModel();
  const target = { model, device: 'cpu', activation: 'f32' } as const;
  const cache = { capacity: 8, rows: 2 };
  const train = trainProgram({ ...target, batch: 2, tokens: 6, accumulate: false });
  const update = updateProgram({ model, device: 'cpu', maxGradNorm: 1 });
  const decode = decodeProgram({ ...target, batch: 2, cache, prefix: 'decode/' });
  const plan = planMemory([train, update, decode], modelTensors(model));
  const sum = (pick: (name: string) => boolean): number =>
    modelTensors(model)
      .filter(({ name }) => pick(name))
      .reduce((total, { dtype, shape }) => total + tensorBytes(dtype, shape), 0);
  assert.is(plan.activations, train.program.arenaBytes);
  assert.is(
    plan.moments,
    sum((name) => /^[mv]\./.test(name)),
  );
  const quantised = new Set(model.requantised.map(({ name }) => name));
  assert.is(
    plan.weights,
    sum((name) => quantised.has(name)),
  );
  assert.is(
    plan.masters,
    sum((name) => !quantised.has(name) && !/^[mv]\./.test(name)),
  );
  assert.is(plan.cache, cacheTensors(model.config, 'f32', cache).length * tensorBytes('f32', [16, 16]));
  assert.ok(plan.io > 0 && plan.taps === 0);
  const { total, ...parts } = plan;
  assert.is(
    total,
    Object.values(parts).reduce((a, b) => a + b, 0),
  );
});

test.run();
