/**
 * Exports for check_export.py, which runs where transformers is: every format of a model, and what q4run computes with it.
 *
 *   node --import tsx test/reference/make-exports.ts OUT [MODEL_FOLDER …]     (default: the shipped model and a fixture)
 *   python3 test/reference/check_export.py OUT
 *
 * OUT/<model>/{fp32,bf16,fp16,modelopt,compressed-tensors}/ are checkpoints (fp32 and modelopt sharded, the others not),
 * OUT/<model>/q4run.safetensors holds input_ids int64 [B,T] and logits f32 [B,T,V] of the scalar fp32 path, and
 * OUT/<model>/changed.json what the exporter says is not as it was, by format.
 */
import { copyFileSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { basename, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { openEngine } from '../../runtime/engine/engine.js';
import { parseQwen3Config } from '../../runtime/models/config.js';
import { layOutModel } from '../../runtime/models/model.js';
import { loadWeights } from '../../runtime/sessions/load.js';
import type { LoadedModel } from '../../runtime/sessions/model.js';
import { observeForward } from '../../runtime/sessions/observation.js';
import { matchWeights } from '../../runtime/sessions/weight-file.js';
import { integers } from '../native/random-values.js';
import { runHere } from '../stages/in-process.js';

const BATCH = 2;
const TOKENS = 48;
const FORMATS: Readonly<Record<string, object>> = {
  fp32: { format: 'safetensors', dtype: 'fp32', shard_size_mib: 1 },
  bf16: { format: 'safetensors', dtype: 'bf16' },
  fp16: { format: 'safetensors', dtype: 'fp16' },
  modelopt: { format: 'modelopt', lm_head: 'nvfp4', shard_size_mib: 1 },
  'compressed-tensors': { format: 'compressed-tensors', lm_head: 'nvfp4' },
};

async function exportAll(folder: string): Promise<void> {
  const stages = Object.entries(FORMATS).map(([id, parameters]) => ({
    id,
    uses: 'export-weights',
    with: { weights: 'model.dat', directory: join(folder, id), ...parameters },
  }));
  writeFileSync(join(folder, 'exports.yaml'), JSON.stringify({ version: 1, stages }));
  const run = await runHere(folder, 'exports.yaml');
  if (run.errors.length > 0) throw new Error(JSON.stringify(run.errors));
  const changed = Object.fromEntries(
    Object.keys(FORMATS).map((id) => [id, run.outputs<{ changed: object }>(id).changed]),
  );
  writeFileSync(join(folder, 'changed.json'), JSON.stringify(changed, null, 2));
}

async function observe(folder: string): Promise<void> {
  const engine = openEngine({ device: 'cpu', reference: true });
  const config = parseQwen3Config(JSON.parse(readFileSync(join(folder, 'config.json'), 'utf8')));
  const index = await engine.files.indexDat(join(folder, 'model.dat'));
  const matched = matchWeights(config, index, true);
  const { store } = await loadWeights(engine, index, matched);
  const storage = new Map([...matched.origin].map(([name, origin]) => [name, origin.storage]));
  const layout = layOutModel({ config: matched.config, storage, masters: 'none' });
  const model: LoadedModel = {
    ...{ layout, configText: '', origin: matched.origin, store, activation: 'f32', text: null, path: null },
    dispose: () => store.dispose(),
  };
  const ids = integers(BATCH * TOKENS, 5, config.vocabSize);
  const { logits } = await observeForward(engine, model, ids, BATCH);
  await engine.files.writeSafetensors(null, join(folder, 'q4run.safetensors'), [
    { name: 'input_ids', type: 'i64', shape: [BATCH, TOKENS], data: BigInt64Array.from(ids, BigInt) },
    { name: 'logits', type: 'f32', shape: [BATCH, TOKENS, config.vocabSize], data: logits },
  ]);
}

async function main(): Promise<void> {
  const [target, ...given] = process.argv.slice(2);
  if (target === undefined) throw new Error('make-exports.ts OUT [MODEL_FOLDER …]');
  const root = fileURLToPath(new URL('../..', import.meta.url));
  const models: [name: string, dat: string, config: string][] =
    given.length > 0
      ? given.map((path) => [basename(resolve(path)), join(path, 'model.dat'), join(path, 'config.json')])
      : [
          [
            'qwen3-tiny',
            join(root, 'pipelines/assets/qwen3-tiny/model.dat'),
            join(root, 'pipelines/assets/qwen3-tiny/config.json'),
          ],
          ['fixture-d', join(root, 'test/fixtures/d.dat'), join(root, 'test/fixtures/d.config.json')],
        ];
  for (const [name, dat, config] of models) {
    const folder = join(resolve(target), name);
    mkdirSync(folder, { recursive: true });
    copyFileSync(dat, join(folder, 'model.dat'));
    copyFileSync(config, join(folder, 'config.json'));
    await exportAll(folder);
    await observe(folder);
    console.log(folder);
  }
}

await main();
