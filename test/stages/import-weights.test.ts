/** import-weights: codes and scales against the oracle, heads, patterns, dialects. */
import { existsSync, readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'uvu';
import * as assert from 'uvu/assert';

import { openEngine } from '../../runtime/engine/engine.js';
import type { Q4Error } from '../../runtime/errors.js';
import { dequantise } from '../oracle/nvfp4.js';
import { quantiseSearching, sharedGlobalScale, type Search } from '../oracle/scale-search.js';
import { dat, TYPE } from '../native/file-bytes.js';
import { runHere } from './in-process.js';
import { folder } from './q4run.js';
import { checkpointFiles, floatsOf, oneStage, randomTensors, TINY, type Raw } from './tiny-checkpoint.js';

const { files } = openEngine({ device: 'cpu' });

interface Row {
  name: string;
  sqnr_db: number;
  relative_error: number;
  zero_code_share: number;
  saturated: number;
  floor_blocks: number;
}
interface Outputs {
  weights: string;
  tied: boolean;
  left_out: string[];
  quantised_tensors: number;
  quantisation: { families: Row[]; tensors: Row[] };
}

/** Imports `source` below `cwd`; its outputs and what the `.dat` holds. */
async function importing(
  cwd: string,
  parameters: object = {},
): Promise<{ outputs: Outputs; tensors: Map<string, Uint8Array>; types: Map<string, string> }> {
  const { writeFileSync } = await import('node:fs');
  writeFileSync(join(cwd, 'p.yaml'), oneStage('import-weights', { source: 'model', ...parameters }));
  const run = await runHere(cwd, 'p.yaml', `run${readdirSync(cwd).length}`);
  assert.equal(run.errors, []);
  const outputs = run.outputs<Outputs>('it');
  const index = await files.indexDat(outputs.weights);
  const tensors = new Map<string, Uint8Array>();
  for (const { name } of index.entries) {
    const data = await files.readEntry(index, name);
    tensors.set(name, new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
  }
  return { outputs, tensors, types: new Map(index.entries.map(({ name, type }) => [name, type])) };
}

const inModel = (content: Record<string, string | Buffer>): Record<string, string | Buffer> =>
  Object.fromEntries(Object.entries(content).map(([name, bytes]) => [`model/${name}`, bytes]));

const bytes = (x: Float32Array): Uint8Array => new Uint8Array(x.buffer);

/** Names of matrices that share a global scale with this one. */
function fused(name: string): string[] {
  const sets = [
    ['q_proj', 'k_proj', 'v_proj'],
    ['gate_proj', 'up_proj'],
  ];
  const own = sets.find((set) => set.some((part) => name.includes(part)));
  if (!own) return [name];
  const part = own.find((candidate) => name.includes(candidate))!;
  return own.map((other) => name.replace(part, other));
}

function compare(
  source: ReadonlyMap<string, Raw>,
  found: ReadonlyMap<string, Uint8Array>,
  search: Search,
): void {
  for (const [name, raw] of source) {
    if (raw.shape.length === 1 || name.includes('embed')) {
      assert.equal(found.get(name), Uint8Array.from(raw.bytes), name);
      continue;
    }
    const group = fused(name).map((other) => floatsOf(source.get(other)!));
    const expected = quantiseSearching(floatsOf(raw), search, sharedGlobalScale(group, search));
    assert.equal(found.get(`${name}.qdata`), expected.qdata, `${name}, ${search}`);
    assert.equal(found.get(`${name}.scale`), expected.scale, `${name}, ${search}`);
    assert.equal(found.get(`${name}.global_scale`), bytes(Float32Array.of(expected.globalScale)), name);
  }
}

for (const search of ['amax', 'four-over-six', 'mse'] as const)
  test(`${search}: codes and scales are the oracle's, from one file and from shards`, async () => {
    const source = randomTensors();
    for (const shards of [1, 3]) {
      const cwd = folder(inModel(checkpointFiles(source, TINY, shards)));
      const { tensors, outputs } = await importing(cwd, { scales: search });
      compare(source, tensors, search);
      assert.is(outputs.quantised_tensors, 15);
    }
  });

/** Whether this machine and build have it. */
function supports(isa: string): boolean {
  process.env['Q4RUN_CPU_ISA'] = isa;
  try {
    openEngine({ device: 'cpu' }).dispose();
    return true;
  } catch (error) {
    assert.is((error as Q4Error).code, 'Q4512');
    return false;
  } finally {
    delete process.env['Q4RUN_CPU_ISA'];
  }
}

for (const isa of ['avx512', 'avx2', 'portable'])
  (isa === 'portable' || supports(isa) ? test : test.skip)(
    `every search gives the same codes on ${isa}`,
    async () => {
      const source = randomTensors(TINY, 'F32', true);
      const cwd = folder(inModel(checkpointFiles(source)));
      process.env['Q4RUN_CPU_ISA'] = isa;
      try {
        for (const search of ['amax', 'four-over-six', 'mse'] as const) {
          const { tensors } = await importing(cwd, { scales: search });
          compare(source, tensors, search);
        }
      } finally {
        delete process.env['Q4RUN_CPU_ISA'];
      }
    },
  );

test('fp16 and fp32 sources, and global scales of their own', async () => {
  for (const dtype of ['F16', 'F32'] as const) {
    const source = randomTensors(TINY, dtype);
    const cwd = folder(inModel(checkpointFiles(source)));
    compare(source, (await importing(cwd)).tensors, 'amax');
    const { tensors } = await importing(cwd, { shared_global_scale: false });
    for (const name of ['q_proj', 'k_proj'].map((part) => `model.layers.1.self_attn.${part}.weight`)) {
      const x = floatsOf(source.get(name)!);
      const expected = quantiseSearching(x, 'amax', sharedGlobalScale([x], 'amax'));
      assert.equal(tensors.get(`${name}.qdata`), expected.qdata);
    }
  }
});

test('the table tells the error that the codes have, and searches lower it', async () => {
  const name = 'model.layers.0.mlp.down_proj.weight';
  for (const heavy of [false, true]) {
    const source = randomTensors({ ...TINY, intermediate_size: 512, hidden_size: 256 }, 'BF16', heavy);
    const cwd = folder(
      inModel(checkpointFiles(source, { ...TINY, intermediate_size: 512, hidden_size: 256 })),
    );
    const squared: Record<string, number> = {};
    for (const search of ['amax', 'four-over-six', 'mse'] as const) {
      const { outputs, tensors } = await importing(cwd, { scales: search });
      const x = floatsOf(source.get(name)!);
      const decoded = dequantise({
        qdata: tensors.get(`${name}.qdata`)!,
        scale: tensors.get(`${name}.scale`)!,
        globalScale: new Float32Array(tensors.get(`${name}.global_scale`)!.slice().buffer)[0]!,
      });
      let [signal, noise, zeros] = [0, 0, 0];
      x.forEach((value, i) => {
        signal += value ** 2;
        noise += (value - decoded[i]!) ** 2;
        if (decoded[i] === 0) zeros++;
      });
      const row = outputs.quantisation.tensors.find((one) => one.name === name)!;
      assert.ok(Math.abs(row.sqnr_db - 10 * Math.log10(signal / noise)) < 1e-3);
      assert.ok(Math.abs(row.relative_error - Math.sqrt(noise / signal)) < 1e-5);
      assert.is(row.zero_code_share, zeros / x.length);
      squared[search] = outputs.quantisation.families.find((one) => one.name === 'all')!.relative_error ** 2;
    }
    const less = (search: string): number => 1 - squared[search]! / squared['amax']!;
    const percent = (share: number): string => `${(100 * share).toFixed(1)} %`;
    console.log(
      `  ${heavy ? 'heavy-tailed' : 'Gaussian'}: less squared error by ${percent(less('four-over-six'))} ` +
        `(four-over-six) and ${percent(less('mse'))} (mse)`,
    );
    assert.ok(less('four-over-six') > (heavy ? 0.05 : 0.15), String(less('four-over-six')));
    assert.ok(less('mse') > (heavy ? 0.12 : 0.25), String(less('mse')));
  }
});

test('blocks of zeros, of tiny and of huge values', async () => {
  const source = randomTensors(TINY, 'F32');
  const name = 'model.layers.0.self_attn.o_proj.weight';
  const x = floatsOf(source.get(name)!);
  x.fill(0, 0, 64);
  x.fill(-0, 64, 80);
  x.fill(1e-30, 80, 96);
  x[96] = 3e4;
  x.fill(1e-7, 112, 128);
  source.set(name, { dtype: 'F32', shape: [64, 64], bytes: Buffer.from(x.buffer) });
  const empty = 'model.layers.1.mlp.down_proj.weight';
  const { shape } = source.get(empty)!;
  source.set(empty, { dtype: 'F32', shape, bytes: Buffer.alloc(64 * 96 * 4) });
  const cwd = folder(inModel(checkpointFiles(source)));
  for (const search of ['amax', 'four-over-six', 'mse'] as const) {
    const { tensors, outputs } = await importing(cwd, { scales: search });
    compare(source, tensors, search);
    const row = outputs.quantisation.tensors.find((one) => one.name === name)!;
    assert.ok(row.floor_blocks > 0);
  }
});

test('a tied head stays tied, or becomes a head of its own', async () => {
  const config = { ...TINY, tie_word_embeddings: true };
  const source = randomTensors(config);
  const cwd = folder(inModel(checkpointFiles(source, config)));
  const tied = await importing(cwd);
  assert.is(tied.outputs.tied, true);
  assert.not([...tied.tensors.keys()].some((name) => name.startsWith('lm_head')));
  const own = await importing(cwd, { lm_head: 'nvfp4' });
  assert.is(own.outputs.tied, false);
  const x = floatsOf(source.get('model.embed_tokens.weight')!);
  const expected = quantiseSearching(x, 'amax', sharedGlobalScale([x], 'amax'));
  assert.equal(own.tensors.get('lm_head.weight.qdata'), expected.qdata);
  const written = JSON.parse(
    readFileSync(join(own.outputs.weights, '..', 'config.json'), 'utf8'),
  ) as typeof TINY;
  assert.is(written.tie_word_embeddings, false);
  const plain = await importing(cwd, { lm_head: 'bf16' });
  assert.is(plain.types.get('lm_head.weight'), 'bf16');
  // transformers ignores a head beside tie_word_embeddings: so does the import, and says so.
  const both = new Map(source).set('lm_head.weight', source.get('model.embed_tokens.weight')!);
  const odd = await importing(folder(inModel(checkpointFiles(both, config))));
  assert.equal(odd.outputs.left_out, ['lm_head.weight']);
  assert.is(odd.outputs.tied, true);
});

test('patterns choose what is quantised; dtype converts the rest', async () => {
  const source = randomTensors();
  const cwd = folder(inModel(checkpointFiles(source)));
  const { types, outputs } = await importing(cwd, { quantize: ['*.mlp.*'], dtype: 'fp32' });
  assert.is(outputs.quantised_tensors, 6);
  assert.is(types.get('model.layers.0.self_attn.q_proj.weight'), 'f32');
  assert.is(types.get('lm_head.weight'), 'f32');
  assert.ok(types.has('model.layers.0.mlp.up_proj.weight.qdata'));
});

test("the predecessor's fp16 .dat becomes single-level NVFP4 for its readers, with a head beside a tied config", async () => {
  const config = { ...TINY, tie_word_embeddings: true };
  const source = randomTensors(TINY, 'F16');
  const pieces = [...source].map(([name, { shape, bytes: payload }]) => ({
    name,
    type: TYPE.f16,
    shape: [...shape],
    payload,
  }));
  const cwd = folder({ 'old.dat': dat(...pieces), 'config.json': JSON.stringify(config) });
  const { tensors, outputs } = await importing(cwd, { source: 'old.dat', global_scale: 'none' });
  assert.is(outputs.tied, false);
  assert.not([...tensors.keys()].some((name) => name.endsWith('.global_scale')));
  for (const name of ['lm_head.weight', 'model.layers.1.mlp.gate_proj.weight']) {
    const expected = quantiseSearching(floatsOf(source.get(name)!), 'amax', 1);
    assert.equal(tensors.get(`${name}.qdata`), expected.qdata);
    assert.equal(tensors.get(`${name}.scale`), expected.scale);
  }
});

test('an NVFP4 .dat is taken over, and decoded and quantised anew on request', async () => {
  const source = randomTensors();
  const cwd = folder(inModel(checkpointFiles(source)));
  const first = await importing(cwd);
  const again = await importing(cwd, { source: first.outputs.weights });
  assert.equal(again.tensors, first.tensors);
  const single = await importing(cwd, { source: first.outputs.weights, global_scale: 'none' });
  const name = 'model.layers.0.self_attn.o_proj.weight';
  const decoded = dequantise({
    qdata: first.tensors.get(`${name}.qdata`)!,
    scale: first.tensors.get(`${name}.scale`)!,
    globalScale: new Float32Array(first.tensors.get(`${name}.global_scale`)!.slice().buffer)[0]!,
  });
  const expected = quantiseSearching(Float32Array.from(decoded), 'amax', 1);
  assert.equal(single.tensors.get(`${name}.scale`), expected.scale);
  assert.equal(single.tensors.get(`${name}.qdata`), expected.qdata);
});

test('an interrupted import leaves nothing that looks finished, and starts again', async () => {
  const cwd = folder(inModel(checkpointFiles(randomTensors())));
  const { writeFileSync } = await import('node:fs');
  writeFileSync(join(cwd, 'p.yaml'), oneStage('import-weights', { source: 'model' }));
  const stop = new AbortController();
  const run = await runHere(cwd, 'p.yaml', 'run', {
    signal: stop.signal,
    onEvent: ({ ev }) => {
      if (ev === 'stage-start') stop.abort();
    },
  });
  assert.is.not(run.exit, 0);
  const left = join(cwd, 'run', 'imported');
  assert.not(existsSync(join(left, 'model.dat')));
  assert.equal(existsSync(left) ? readdirSync(left).filter((name) => name.endsWith('.tmp')) : [], []);
  const again = await runHere(cwd, 'p.yaml', 'run');
  assert.equal(again.errors, []);
  assert.ok(existsSync(join(left, 'model.dat')));
});

test.run();
