import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { Q4Errors, type Q4Error } from '../../runtime/errors.js';
import { parseQwen3Config } from '../../runtime/models/config.js';
import { TINY_JSON } from './tiny-model.js';

const QWEN3_4B = {
  architectures: ['Qwen3ForCausalLM'],
  attention_bias: false,
  attention_dropout: 0.0,
  bos_token_id: 151643,
  eos_token_id: 151645,
  head_dim: 128,
  hidden_act: 'silu',
  hidden_size: 2560,
  initializer_range: 0.02,
  intermediate_size: 9728,
  max_position_embeddings: 262144,
  max_window_layers: 36,
  model_type: 'qwen3',
  num_attention_heads: 32,
  num_hidden_layers: 36,
  num_key_value_heads: 8,
  rms_norm_eps: 1e-6,
  rope_scaling: null,
  rope_theta: 5000000,
  sliding_window: null,
  tie_word_embeddings: true,
  torch_dtype: 'bfloat16',
  transformers_version: '4.51.0',
  use_cache: true,
  use_sliding_window: false,
  vocab_size: 151936,
};

const problemsOf = (changes: object): Q4Error[] => {
  try {
    parseQwen3Config({ ...TINY_JSON, ...changes }, 'config.json');
  } catch (error) {
    return error instanceof Q4Errors ? [...error.errors] : [error as Q4Error];
  }
  return [];
};

test('the config of Qwen3-4B-Instruct-2507 is read', () => {
  assert.equal(parseQwen3Config(QWEN3_4B), {
    vocabSize: 151936,
    hiddenSize: 2560,
    intermediateSize: 9728,
    numHiddenLayers: 36,
    numAttentionHeads: 32,
    numKeyValueHeads: 8,
    headDim: 128,
    rmsNormEps: 1e-6,
    ropeTheta: 5000000,
    maxPositionEmbeddings: 262144,
    tieWordEmbeddings: true,
    eosTokenIds: [151645],
    bosTokenId: 151643,
    dtype: 'bfloat16',
  });
});

test('the RoPE base may stand in rope_parameters or rope_scaling, with what is given agreeing', () => {
  const { rope_theta: _, ...without } = TINY_JSON;
  for (const key of ['rope_parameters', 'rope_scaling'])
    assert.is(
      parseQwen3Config({ ...without, [key]: { rope_type: 'default', rope_theta: 5e6 } }).ropeTheta,
      5e6,
    );
  assert.is(problemsOf({ rope_theta: 1e6, rope_parameters: { rope_theta: 1e6 } }).length, 0);
  assert.match(
    problemsOf({ rope_theta: 1e6, rope_parameters: { rope_theta: 5e6 } })[0]!.message,
    /different values/,
  );
  assert.is(problemsOf({ rope_theta: null })[0]!.code, 'Q4272');
});

test('head_dim defaults to hidden_size / num_attention_heads, and need not equal it', () => {
  const { head_dim: _, ...without } = TINY_JSON;
  assert.is(parseQwen3Config(without).headDim, 4);
  assert.is(parseQwen3Config(TINY_JSON).headDim, 8);
  assert.match(
    problemsOf({ head_dim: null, num_attention_heads: 3, num_key_value_heads: 1 })[0]!.message,
    /head_dim/,
  );
});

const REFUSED: [object, string, RegExp][] = [
  [{ use_sliding_window: true, sliding_window: 4096 }, 'Q4273', /sliding window/],
  [{ layer_types: ['full_attention', 'sliding_attention'] }, 'Q4273', /sliding_attention/],
  [{ model_type: 'qwen3_moe' }, 'Q4273', /mixture of experts/],
  [{ num_experts: 128 }, 'Q4273', /mixture of experts/],
  [{ rope_scaling: { rope_type: 'yarn', factor: 4 } }, 'Q4273', /scaled RoPE \("yarn"/],
  [{ rope_scaling: { type: 'linear', factor: 2 } }, 'Q4273', /scaled RoPE \("linear"/],
  [{ rope_parameters: { rope_type: 'default', partial_rotary_factor: 0.5 } }, 'Q4273', /partial RoPE/],
  [{ attention_bias: true }, 'Q4273', /attention_bias/],
  [{ attention_dropout: 0.1 }, 'Q4273', /dropout/],
  [{ hidden_act: 'gelu' }, 'Q4273', /hidden_act "gelu"/],
  [{ model_type: 'llama' }, 'Q4274', /model_type "llama"/],
  [{ architectures: ['Qwen3ForSequenceClassification'] }, 'Q4274', /Qwen3ForSequenceClassification/],
  [{ model_type: undefined }, 'Q4272', /model_type/],
  [{ vocab_size: '23' }, 'Q4271', /vocab_size/],
  [{ vocab_size: undefined }, 'Q4272', /vocab_size/],
  [{ hidden_size: 16.5 }, 'Q4271', /hidden_size/],
  [{ num_hidden_layers: 0 }, 'Q4271', /num_hidden_layers/],
  [{ num_key_value_heads: 3 }, 'Q4271', /not a multiple of num_key_value_heads/],
  [{ head_dim: 7 }, 'Q4271', /odd/],
  [{ hidden_size: 24 }, 'Q4271', /hidden_size \(24\) is not a multiple of 16/],
  [{ intermediate_size: 40 }, 'Q4271', /intermediate_size/],
  [{ head_dim: 2 }, 'Q4271', /num_attention_heads · head_dim \(8\)/],
  [{ rms_norm_eps: -1 }, 'Q4271', /rms_norm_eps/],
  [{ rope_theta: 'big' }, 'Q4271', /rope_theta/],
  [{ rope_parameters: 7 }, 'Q4271', /rope_parameters/],
  [{ tie_word_embeddings: 'yes' }, 'Q4271', /tie_word_embeddings/],
  [{ eos_token_id: [2, 99] }, 'Q4271', /eos_token_id/],
];
for (const [changes, code, message] of REFUSED)
  test(`refused: ${JSON.stringify(changes)}`, () => {
    const problems = problemsOf(changes);
    const problem = problems.find((candidate) => message.test(candidate.message));
    assert.ok(problem, `found ${problems.map(({ message: text }) => text).join('; ') || 'nothing'}`);
    assert.is(problem.code, code);
    assert.is(problem.exit, 4);
    assert.is(problem.details.file, 'config.json');
  });

test('all problems are told together', () => {
  const problems = problemsOf({
    hidden_act: 'relu',
    head_dim: 7,
    vocab_size: undefined,
    attention_bias: true,
  });
  assert.equal(problems.map(({ code }) => code).sort(), ['Q4271', 'Q4271', 'Q4272', 'Q4273', 'Q4273']);
});

for (const json of [null, [], 'text', 7])
  test(`refused as no object: ${JSON.stringify(json)}`, () => {
    assert.throws(
      () => parseQwen3Config(json),
      (error: Q4Error) => error.code === 'Q4271',
    );
  });

test('ids may be one, several or none', () => {
  assert.equal(parseQwen3Config({ ...TINY_JSON, eos_token_id: [2, 0] }).eosTokenIds, [2, 0]);
  assert.equal(parseQwen3Config(TINY_JSON).eosTokenIds, []);
});

test.run();
