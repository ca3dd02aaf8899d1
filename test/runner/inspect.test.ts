/** q4run inspect: what files hold, in every format, and what two of them differ in. */
import { copyFileSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'uvu';
import * as assert from 'uvu/assert';

import { openEngine, probe } from '../../runtime/engine/engine.js';
import { inspectFile } from '../../runtime/runner/worker/inspect.js';
import { runHere } from '../stages/in-process.js';
import { folder, q4run } from '../stages/q4run.js';
import { checkpointFiles, oneStage, randomTensors } from '../stages/tiny-checkpoint.js';

interface Inspected {
  kind: string;
  entries: number;
  files: number;
  types: Record<string, { tensors: number }>;
  quantisation: { matrices: number; blocks: number } | null;
  tensors: { name: string; type: string; shape: number[] }[];
  same: number;
  same_values: number;
  only_here: string[];
  only_there: string[];
  different: { name: string; rel_l2: number | null; max_abs: number | null }[];
}

const inspect = async (path: string, other = ''): Promise<Inspected> =>
  (await inspectFile(path, other, { openEngine, probe })) as unknown as Inspected;

/** A bf16 checkpoint, its `.dat`, and that in both NVFP4 formats. */
async function models(): Promise<string> {
  const cwd = folder();
  for (const [name, bytes] of Object.entries(checkpointFiles(randomTensors(), undefined, 2))) {
    mkdirSync(join(cwd, 'model'), { recursive: true });
    writeFileSync(join(cwd, 'model', name), bytes);
  }
  const stage = async (uses: string, parameters: object): Promise<void> => {
    writeFileSync(join(cwd, 'p.yaml'), oneStage(uses, parameters));
    assert.equal((await runHere(cwd, 'p.yaml')).errors, []);
  };
  await stage('import-weights', { source: 'model', directory: join(cwd, 'dat') });
  for (const format of ['modelopt', 'compressed-tensors'])
    await stage('export-weights', {
      ...{ weights: 'dat/model.dat', format, lm_head: 'nvfp4', directory: join(cwd, format) },
    });
  return cwd;
}

const cwd = await models();

test('rows are tensors, whatever their parts are called', async () => {
  for (const [path, type] of [
    ['dat/model.dat', 'nvfp4, two levels'],
    ['modelopt', 'nvfp4, ModelOpt'],
    ['compressed-tensors', 'nvfp4, compressed-tensors'],
  ] as const) {
    const found = await inspect(join(cwd, path));
    assert.is(found.tensors.length, randomTensors().size);
    assert.is(found.types[type]?.tensors, 15);
    assert.is(found.quantisation?.matrices, 15);
    const row = found.tensors.find(({ name }) => name === 'model.layers.0.mlp.down_proj.weight')!;
    assert.equal(row.shape, [64, 96]);
  }
  const shards = await inspect(join(cwd, 'model'));
  assert.is(shards.files, 2);
  assert.is(shards.quantisation, null);
});

test('two files that hold the same', async () => {
  const same = await inspect(join(cwd, 'modelopt'), join(cwd, 'modelopt'));
  assert.is(same.same, randomTensors().size);
  const turned = await inspect(join(cwd, 'dat', 'model.dat'), join(cwd, 'modelopt'));
  assert.equal(turned.different, []);
  assert.is(turned.same_values, 15);
});

test('what differs is measured', async () => {
  const found = await inspect(join(cwd, 'model'), join(cwd, 'dat', 'model.dat'));
  assert.is(found.same, randomTensors().size - 15);
  assert.is(found.different.length, 15);
  for (const { rel_l2 } of found.different) assert.ok(rel_l2! > 0.05 && rel_l2! < 0.15, String(rel_l2));
  const bytes = readFileSync(join(cwd, 'model', 'model-00001-of-00002.safetensors'));
  bytes[bytes.length - 1]! ^= 1;
  writeFileSync(join(cwd, 'one.safetensors'), bytes);
  copyFileSync(join(cwd, 'model', 'model-00001-of-00002.safetensors'), join(cwd, 'two.safetensors'));
  const one = await inspect(join(cwd, 'one.safetensors'), join(cwd, 'two.safetensors'));
  assert.is(one.different.length, 1);
  assert.ok(one.different[0]!.max_abs! > 0);
  const half = await inspect(join(cwd, 'two.safetensors'), join(cwd, 'model'));
  assert.equal(half.only_here, []);
  assert.ok(half.only_there.length > 0);
});

test('the command takes one or two files', async () => {
  const one = await q4run(cwd, 'inspect', 'dat/model.dat');
  assert.is(one.code, 0);
  assert.is(one.events.find(({ ev }) => ev === 'inspect')?.['kind'], 'dat');
  const two = await q4run(cwd, 'inspect', 'dat/model.dat', 'modelopt');
  assert.is(two.code, 0);
  assert.is(two.events.find(({ ev }) => ev === 'inspect')?.['kind'], 'difference');
});

test.run();
