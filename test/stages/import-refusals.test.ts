/** Hostile checkpoints: each is refused with a code, and no weights are written. */
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'uvu';
import * as assert from 'uvu/assert';

import { runHere } from './in-process.js';
import { folder } from './q4run.js';
import {
  checkpointFiles,
  floatsOf,
  oneStage,
  randomTensors,
  rawOf,
  safetensorsFile,
  TINY,
  type Raw,
} from './tiny-checkpoint.js';

type Files = Record<string, string | Buffer>;

/** What the import of these files says; nothing may be left of it. */
async function refusal(
  files: Files,
  code: string,
  parameters: object = {},
): Promise<Record<string, unknown>> {
  const inModel = Object.fromEntries(Object.entries(files).map(([name, bytes]) => [`model/${name}`, bytes]));
  const cwd = folder({
    ...inModel,
    'p.yaml': oneStage('import-weights', { source: 'model', ...parameters }),
  });
  const run = await runHere(cwd, 'p.yaml');
  const codes = run.errors.map((error) => error['code']);
  assert.ok(codes.includes(code), `expected ${code}, got ${JSON.stringify(run.errors)}`);
  const left = join(cwd, 'run', 'imported');
  const weights = existsSync(left)
    ? readdirSync(left).filter((name) => /\.dat$|\.safetensors$|\.tmp$/.test(name))
    : [];
  assert.equal(weights, []);
  return run.errors.find((error) => error['code'] === code) as Record<string, unknown>;
}

const usual = (): Files => checkpointFiles(randomTensors());
const withHeader = (header: string, data: Buffer, length = Buffer.byteLength(header)): Buffer => {
  const prefix = Buffer.alloc(8);
  prefix.writeBigUInt64LE(BigInt(length));
  return Buffer.concat([prefix, Buffer.from(header), data]);
};
const NAME = 'model.layers.0.mlp.up_proj.weight';
const pair = (a: string, b: string): string =>
  `{${a}: {"dtype":"BF16","shape":[1],"data_offsets":[0,2]}, ${b}: {"dtype":"BF16","shape":[1],"data_offsets":[2,4]}}`;

test('a truncated file', async () => {
  const whole = usual()['model.safetensors'] as Buffer;
  for (const bytes of [4, 100, whole.length - 1])
    await refusal(
      { ...usual(), 'model.safetensors': whole.subarray(0, bytes) },
      bytes > 1000 ? 'Q4210' : 'Q4203',
    );
});

test('overlapping tensors, holes, duplicate names, a header over 100 MB', async () => {
  const header = pair('"a"', '"b"');
  const replaced = (json: string, data = Buffer.alloc(4), length?: number): Files => ({
    ...usual(),
    'model.safetensors': withHeader(json, data, length),
  });
  await refusal(replaced(header.replace('[2,4]', '[1,3]'), Buffer.alloc(3)), 'Q4234');
  await refusal(replaced(header.replace('[2,4]', '[4,6]'), Buffer.alloc(6)), 'Q4235');
  await refusal(replaced(pair('"a"', '"a"')), 'Q4214');
  await refusal(replaced(pair('"a"', '"\\u0061"')), 'Q4214');
  await refusal(replaced('{}', Buffer.alloc(64), 100_000_001), 'Q4230');
  await refusal(replaced('{"a": '), 'Q4231');
});

test('a shard index that leads outside, is no JSON, or contradicts its shards', async () => {
  const files = checkpointFiles(randomTensors(), TINY, 2);
  const index = JSON.parse(files['model.safetensors.index.json'] as string) as {
    weight_map: Record<string, string>;
  };
  const changed = (change: (map: Record<string, string>) => void): Files => {
    const map = { ...index.weight_map };
    change(map);
    return { ...files, 'model.safetensors.index.json': JSON.stringify({ weight_map: map }) };
  };
  for (const path of ['../secret.safetensors', '/etc/x.safetensors', 'a/b.safetensors', 'config.json', ''])
    await refusal(
      changed((map) => (map[NAME] = path)),
      'Q4284',
    );
  const error = await refusal(
    changed((map) => (map['model.layers.9.weight'] = 'model-00001-of-00002.safetensors')),
    'Q4284',
  );
  assert.match(String(error['expected']), 'model.layers.9.weight');
  await refusal(
    changed((map) => Reflect.deleteProperty(map, NAME)),
    'Q4284',
  );
  await refusal(
    changed((map) => (map[NAME] = 'model-00003-of-00002.safetensors')),
    'Q4284',
  );
  await refusal({ ...files, 'model.safetensors.index.json': '{"weight_map": [1]}' }, 'Q4284');
  await refusal({ ...files, 'model.safetensors.index.json': '{"weight_map"' }, 'Q4284');
});

test('dtype and shape against the config; missing and unexpected tensors', async () => {
  const changed = (change: (tensors: Map<string, Raw>) => void): Files => {
    const tensors = randomTensors();
    change(tensors);
    return checkpointFiles(tensors);
  };
  const wide: Raw = { dtype: 'F64', shape: [96, 64], bytes: Buffer.alloc(96 * 64 * 8) };
  await refusal(
    changed((tensors) => tensors.set(NAME, wide)),
    'Q4283',
  );
  await refusal(
    changed((tensors) => tensors.set(NAME, { ...tensors.get(NAME)!, shape: [64, 96] })),
    'Q4283',
  );
  await refusal(
    changed((tensors) => tensors.delete(NAME)),
    'Q4281',
  );
  await refusal(
    changed((tensors) => tensors.set('model.bias', tensors.get('model.norm.weight')!)),
    'Q4282',
  );
  await refusal({ 'model.safetensors': safetensorsFile(randomTensors()) }, 'Q4287');
  await refusal({ 'config.json': JSON.stringify(TINY) }, 'Q4287');
});

for (const [word, value] of [
  ['NaN', NaN],
  ['infinity', Infinity],
] as const)
  test(`${word} in a source, in every kind of tensor and search`, async () => {
    for (const name of [NAME, 'model.embed_tokens.weight', 'model.layers.1.self_attn.k_norm.weight'])
      for (const dtype of ['BF16', 'F16', 'F32'] as const) {
        const tensors = randomTensors(TINY, dtype);
        const x = floatsOf(tensors.get(name)!);
        x[7] = value;
        tensors.set(name, rawOf(tensors.get(name)!.shape, x, dtype));
        const error = await refusal(checkpointFiles(tensors), 'Q4220', { scales: 'mse' });
        assert.is(error['entry'], name);
        if (name === NAME) await refusal(checkpointFiles(tensors), 'Q4220', { global_scale: 'none' });
      }
  });

/** One NVFP4 matrix in an otherwise plain checkpoint. */
function quantised(kind: 'modelopt' | 'compressed-tensors', global: number, scale = 0x38): Files {
  const tensors = randomTensors();
  tensors.delete(NAME);
  const base = NAME.replace(/\.weight$/, '');
  const [codes, last] =
    kind === 'modelopt' ? ['weight', 'weight_scale_2'] : ['weight_packed', 'weight_global_scale'];
  tensors.set(`${base}.${codes}`, { dtype: 'U8', shape: [96, 32], bytes: Buffer.alloc(96 * 32, 0x21) });
  tensors.set(`${base}.weight_scale`, {
    dtype: 'F8_E4M3',
    shape: [96, 4],
    bytes: Buffer.alloc(96 * 4, scale),
  });
  tensors.set(`${base}.${last}`, {
    dtype: 'F32',
    shape: kind === 'modelopt' ? [] : [1],
    bytes: Buffer.from(Float32Array.of(global).buffer),
  });
  return checkpointFiles(tensors);
}

test('a global scale in the wrong direction is told by its magnitude', async () => {
  const up = await refusal(quantised('modelopt', 26000), 'Q4286');
  assert.match(String(up['hint']), 'compressed-tensors');
  const down = await refusal(quantised('compressed-tensors', 4e-5), 'Q4286');
  assert.match(String(down['hint']), 'ModelOpt');
  for (const bad of [0, -1, NaN, Infinity]) await refusal(quantised('modelopt', bad), 'Q4219');
});

test('block scales that are NaN or negative, and parts that are missing', async () => {
  await refusal(quantised('modelopt', 4e-5, 0x7f), 'Q4219');
  await refusal(quantised('compressed-tensors', 26000, 0x81), 'Q4219');
});

test('quantised in another way', async () => {
  const with_ = (quantization_config: object): Files =>
    checkpointFiles(randomTensors(), { ...TINY, quantization_config });
  await refusal(with_({ quant_method: 'gptq', bits: 4 }), 'Q4285');
  await refusal(with_({ quant_method: 'modelopt', quant_algo: 'FP8' }), 'Q4285');
  await refusal(with_({ quant_method: 'compressed-tensors', format: 'pack-quantized' }), 'Q4285');
});

test('settings that cannot be', async () => {
  await refusal(usual(), 'Q4507', { quantize: ['*.q_prj.*'] });
  await refusal(usual(), 'Q4507', { lm_head: 'tied' });
});

test.run();
