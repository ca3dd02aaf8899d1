/** export-weights, and the way there and back: what the other format can hold is byte for byte the same. */
import { existsSync, readFileSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'uvu';
import * as assert from 'uvu/assert';

import { uniformSource } from '../native/random-values.js';
import { BF16, decode, encode, F16 } from '../oracle/number-formats.js';
import { dequantise, quantise } from '../oracle/nvfp4.js';
import { runHere } from './in-process.js';
import { folder, put } from './q4run.js';
import {
  checkpointFiles,
  floatsOf,
  oneStage,
  randomTensors,
  rawOf,
  readSafetensors,
  TINY,
  type Raw,
} from './tiny-checkpoint.js';

type Kind = 'modelopt' | 'compressed-tensors';

interface ExportOutputs {
  directory: string;
  files: string[];
  tied: boolean;
  untied_because: string | null;
  activations: boolean;
  changed: { name: string; what: string }[];
}

async function stage<T>(cwd: string, uses: string, parameters: object): Promise<T> {
  writeFileSync(join(cwd, 'p.yaml'), oneStage(uses, parameters));
  const run = await runHere(cwd, 'p.yaml', `run${readdirSync(cwd).length}`);
  assert.equal(run.errors, []);
  return run.outputs<T>('it');
}

const importing = (cwd: string, parameters: object): Promise<{ weights: string }> =>
  stage(cwd, 'import-weights', parameters);
const exporting = (cwd: string, parameters: object): Promise<ExportOutputs> =>
  stage(cwd, 'export-weights', parameters);

/** All tensors of a checkpoint directory. */
function tensorsIn(directory: string): Map<string, Raw> {
  const files = readdirSync(directory).filter((name) => /^model.*\.safetensors$/.test(name));
  return new Map(files.flatMap((name) => [...readSafetensors(readFileSync(join(directory, name)))]));
}

const json = (...path: string[]): Record<string, unknown> =>
  JSON.parse(readFileSync(join(...path), 'utf8')) as Record<string, unknown>;

const f32 = (value: number, shape: number[]): Raw => ({
  dtype: 'F32',
  shape,
  bytes: Buffer.from(Float32Array.of(value).buffer),
});

/** A quantised checkpoint as its own tools write it, with global scales that no division by us made. */
function quantisedCheckpoint(
  kind: Kind,
  activations: boolean,
  config = TINY,
): Record<string, string | Buffer> {
  const uniform = uniformSource(7);
  const tensors = new Map<string, Raw>();
  for (const [name, raw] of randomTensors(config)) {
    if (!name.includes('_proj')) {
      tensors.set(name, raw);
      continue;
    }
    const [out, inputs] = raw.shape as [number, number];
    const multiplier = Math.fround(2e-5 * (1 + uniform()));
    const divisor = Math.fround(3e4 * (1 + uniform()));
    const { qdata, scale } = quantise(floatsOf(raw), kind === 'modelopt' ? multiplier : 1 / divisor);
    const base = name.replace(/\.weight$/, '');
    const codes: Raw = { dtype: 'U8', shape: [out, inputs / 2], bytes: Buffer.from(qdata) };
    const scales: Raw = { dtype: 'F8_E4M3', shape: [out, inputs / 16], bytes: Buffer.from(scale) };
    const input = Math.fround(0.001 + uniform());
    if (kind === 'modelopt') {
      tensors.set(`${base}.weight`, codes).set(`${base}.weight_scale`, scales);
      tensors.set(`${base}.weight_scale_2`, f32(multiplier, []));
      if (activations) tensors.set(`${base}.input_scale`, f32(input, []));
      if (activations && /[kv]_proj/.test(base))
        tensors.set(`${base}.${base.at(-6)}_scale`, f32(uniform(), []));
    } else {
      tensors.set(`${base}.weight_packed`, codes).set(`${base}.weight_scale`, scales);
      tensors.set(`${base}.weight_global_scale`, f32(divisor, [1]));
      if (activations) tensors.set(`${base}.input_global_scale`, f32(1 / input, [1]));
    }
  }
  const quantization =
    kind === 'modelopt'
      ? { quant_method: 'modelopt', quant_algo: activations ? 'NVFP4' : 'W4A16_NVFP4', ignore: ['lm_head'] }
      : { quant_method: 'compressed-tensors', format: 'nvfp4-pack-quantized', ignore: ['lm_head'] };
  return checkpointFiles(tensors, { ...config, quantization_config: quantization }, 2);
}

const inModel = (content: Record<string, string | Buffer>): Record<string, string | Buffer> =>
  Object.fromEntries(Object.entries(content).map(([name, bytes]) => [`model/${name}`, bytes]));

const same = (
  a: ReadonlyMap<string, Raw>,
  b: ReadonlyMap<string, Raw>,
  except: readonly string[] = [],
): void => {
  assert.equal([...a.keys()].sort(), [...b.keys()].sort());
  for (const [name, { dtype, shape, bytes }] of a) {
    if (except.includes(name)) continue;
    const other = b.get(name)!;
    assert.equal([dtype, shape], [other.dtype, other.shape], name);
    assert.ok(bytes.equals(other.bytes), `${name} differs`);
  }
};

for (const kind of ['modelopt', 'compressed-tensors'] as const)
  for (const activations of [true, false])
    for (const tied of [false, true])
      test(`${kind} ${activations ? 'W4A4' : 'W4A16'}${tied ? ', tied' : ''} → .dat → ${kind}: every byte`, async () => {
        const config = { ...TINY, tie_word_embeddings: tied };
        const cwd = folder(inModel(quantisedCheckpoint(kind, activations, config)));
        const { weights } = await importing(cwd, { source: 'model', quantize: ['*_proj.weight'] });
        const out = await exporting(cwd, { weights, format: kind });
        same(tensorsIn(join(cwd, 'model')), tensorsIn(out.directory));
        assert.equal(out.changed, []);
        assert.is(out.activations, activations);
        const written = json(out.directory, 'config.json');
        const quantization = written['quantization_config'] as Record<string, unknown>;
        assert.is(quantization['quant_method'], kind);
        assert.equal(quantization['ignore'], ['lm_head']);
        assert.is(written['tie_word_embeddings'], tied);
        const group = (quantization['config_groups'] as Record<string, Record<string, unknown>>)['group_0']!;
        assert.is((group['input_activations'] ?? null) !== null, activations);
        if (kind === 'modelopt') {
          const quant = json(out.directory, 'hf_quant_config.json')['quantization'] as Record<
            string,
            unknown
          >;
          assert.equal(quant, {
            quant_algo: activations ? 'NVFP4' : 'W4A16_NVFP4',
            kv_cache_quant_algo: activations ? 'FP8' : null,
            group_size: 16,
            exclude_modules: ['lm_head'],
          });
        } else assert.is(quantization['format'], 'nvfp4-pack-quantized');
      });

for (const kind of ['modelopt', 'compressed-tensors'] as const)
  test(`.dat → ${kind} → .dat: every tensor that is not listed`, async () => {
    const cwd = folder(inModel(checkpointFiles(randomTensors())));
    const { weights } = await importing(cwd, { source: 'model' });
    const out = await exporting(cwd, { weights, format: kind, lm_head: 'nvfp4' });
    const back = await importing(cwd, { source: out.directory });
    const listed = new Set(out.changed.map(({ name }) => name));
    const entries = (path: string): Promise<Map<string, string>> => datTensors(path);
    const [before, after] = [await entries(weights), await entries(back.weights)];
    assert.equal([...before.keys()], [...after.keys()]);
    let compared = 0;
    for (const [name, bytes] of before) {
      if (listed.has(name.replace(/\.global_scale$/, ''))) continue;
      assert.is(after.get(name), bytes, name);
      compared++;
    }
    // Only a global scale without an exact divisor may differ; codes and scales never do.
    assert.ok(kind === 'modelopt' ? listed.size === 0 : listed.size < 15);
    for (const [name, bytes] of before)
      if (!name.endsWith('.global_scale')) assert.is(after.get(name), bytes, name);
    assert.ok(compared > 30);
    // By default the head is decoded, and the exporter says so.
    const usual = await exporting(cwd, { weights, format: kind });
    assert.ok(usual.changed.some(({ name, what }) => name === 'lm_head.weight' && what.includes('decoded')));
    assert.is(tensorsIn(usual.directory).get('lm_head.weight')!.dtype, 'BF16');
  });

async function datTensors(path: string): Promise<Map<string, string>> {
  const { openEngine } = await import('../../runtime/engine/engine.js');
  const { files } = openEngine({ device: 'cpu' });
  const index = await files.indexDat(path);
  const bytes = readFileSync(path);
  return new Map(
    index.entries.map((entry) => [
      entry.name,
      `${entry.type} ${bytes.subarray(entry.offset, entry.offset + entry.bytes).toString('hex')}`,
    ]),
  );
}

test('plain exports hold the decoded weights in any dtype, sharded under an index', async () => {
  const cwd = folder(inModel(checkpointFiles(randomTensors())));
  put(cwd, { 'model/tokenizer.json': '{"a": 1}', 'model/chat_template.jinja': '{{ x }}' });
  const { weights } = await importing(cwd, { source: 'model' });
  const quantised = await datTensors(weights);
  const part = (name: string): Buffer => Buffer.from(quantised.get(name)!.split(' ')[1]!, 'hex');
  const decoded = (name: string): Float64Array =>
    dequantise({
      qdata: part(`${name}.qdata`),
      scale: part(`${name}.scale`),
      globalScale: part(`${name}.global_scale`).readFloatLE(),
    });
  for (const [dtype, format] of [
    ['fp32', null],
    ['bf16', BF16],
    ['fp16', F16],
  ] as const) {
    const out = await exporting(cwd, { weights, dtype, directory: dtype });
    const tensors = tensorsIn(out.directory);
    assert.is(tensors.size, randomTensors().size);
    for (const name of ['model.layers.1.mlp.down_proj.weight', 'lm_head.weight']) {
      const raw = tensors.get(name)!;
      const round = (x: number): number => (format ? decode(format, encode(format, x)) : x);
      assert.equal(floatsOf(raw), Float32Array.from(decoded(name), round), `${name} ${dtype}`);
    }
    const config = json(out.directory, 'config.json');
    assert.is(config['torch_dtype'], { fp32: 'float32', bf16: 'bfloat16', fp16: 'float16' }[dtype]);
    assert.is(config['quantization_config'], undefined);
    assert.is(readFileSync(join(out.directory, 'chat_template.jinja'), 'utf8'), '{{ x }}');
  }
});

test('shards are filled in order and the index names every tensor', async () => {
  const config = { ...TINY, hidden_size: 256, intermediate_size: 1024, num_hidden_layers: 3 };
  const cwd = folder(inModel(checkpointFiles(randomTensors(config), config)));
  const { weights } = await importing(cwd, { source: 'model' });
  const out = await exporting(cwd, { weights, shard_size_mib: 1, dtype: 'fp32' });
  assert.ok(out.files.length > 5);
  const index = json(out.directory, 'model.safetensors.index.json') as {
    weight_map: Record<string, string>;
    metadata: { total_size: number };
  };
  let total = 0;
  for (const file of out.files)
    for (const [name, { bytes }] of readSafetensors(readFileSync(join(out.directory, file)))) {
      assert.is(index.weight_map[name], file);
      total += bytes.length;
    }
  assert.is(index.metadata.total_size, total);
  assert.is(Object.keys(index.weight_map).length, randomTensors(config).size);
  // And it is read again.
  await importing(cwd, { source: out.directory });
});

test('a tied head stays tied; one that stands beside a config that ties cannot, and the exporter says so', async () => {
  const config = { ...TINY, tie_word_embeddings: true };
  const cwd = folder(inModel(checkpointFiles(randomTensors(config), config)));
  const tied = await importing(cwd, { source: 'model' });
  const out = await exporting(cwd, { weights: tied.weights });
  assert.is(out.tied, true);
  assert.not(tensorsIn(out.directory).has('lm_head.weight'));
  const own = await importing(cwd, { source: 'model', lm_head: 'nvfp4' });
  put(cwd, { 'ties.json': JSON.stringify(config) });
  const apart = await exporting(cwd, { weights: own.weights, config: 'ties.json' });
  assert.is(apart.tied, false);
  assert.match(apart.untied_because ?? '', 'a head of their own');
  assert.is(json(apart.directory, 'config.json')['tie_word_embeddings'], false);
});

test('scales of activations are turned around once when the format changes', async () => {
  const cwd = folder(inModel(quantisedCheckpoint('modelopt', true)));
  const { weights } = await importing(cwd, { source: 'model', quantize: ['*_proj.weight'] });
  const out = await exporting(cwd, { weights, format: 'compressed-tensors' });
  assert.is(out.activations, true);
  const source = tensorsIn(join(cwd, 'model'));
  const found = tensorsIn(out.directory);
  const base = 'model.layers.0.mlp.up_proj';
  const multiplier = source.get(`${base}.input_scale`)!.bytes.readFloatLE();
  const raw = found.get(`${base}.input_global_scale`)!;
  assert.equal(raw.shape, [1]);
  assert.is(raw.bytes.readFloatLE(), Math.fround(1 / multiplier));
  assert.ok(out.changed.some(({ name, what }) => name.endsWith('k_scale') && what.startsWith('left out')));
});

test('leftovers of another export in the directory are refused', async () => {
  const cwd = folder(inModel(checkpointFiles(randomTensors())));
  const { weights } = await importing(cwd, { source: 'model' });
  put(cwd, { 'out/model.safetensors.index.json': '{}' });
  writeFileSync(join(cwd, 'p.yaml'), oneStage('export-weights', { weights, directory: join(cwd, 'out') }));
  const run = await runHere(cwd, 'p.yaml');
  assert.is(run.errors[0]?.['code'], 'Q4507');
  assert.not(existsSync(join(cwd, 'out', 'model.safetensors')));
});

test('values that fp16 cannot hold are refused, and nothing is written', async () => {
  const source = randomTensors(TINY, 'F32');
  const x = floatsOf(source.get('model.embed_tokens.weight')!);
  x[5] = 1e6;
  source.set('model.embed_tokens.weight', rawOf([48, 64], x, 'F32'));
  const cwd = folder(inModel(checkpointFiles(source)));
  const { weights } = await importing(cwd, { source: 'model' });
  writeFileSync(
    join(cwd, 'p.yaml'),
    oneStage('export-weights', { weights, dtype: 'fp16', directory: join(cwd, 'out') }),
  );
  const run = await runHere(cwd, 'p.yaml');
  assert.is(run.errors[0]?.['code'], 'Q4226');
  assert.equal(
    readdirSync(join(cwd, 'out')).filter((name) => name.includes('safetensors') || name.endsWith('.tmp')),
    [],
  );
});

test.run();
