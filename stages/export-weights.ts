/** Gives a model back to others: safetensors in bf16, fp16 or fp32, or NVFP4 as ModelOpt or compressed-tensors store it. */
import type { FileType, Transcoded, TranscodeOptions } from '../runtime/engine/types.js';
import { Q4Error } from '../runtime/errors.js';
import {
  changedConfig,
  compressedTensorsConfig,
  modelOptConfig,
  modelOptQuantConfig,
} from '../runtime/sessions/checkpoint-config.js';
import {
  exportItems,
  itemBytes,
  shardIndex,
  shardItems,
  type ExportItems,
  type Extra,
  type Extras,
  type Shard,
} from '../runtime/sessions/export-items.js';
import type { LoadedModel, Weights } from '../runtime/sessions/model.js';
import { WEIGHTS_FILE } from '../runtime/sessions/saved-state.js';
import { homeOf, readSourceModel, type SourceModel } from '../runtime/sessions/source-model.js';
import { copyTextFiles, writeTextFiles } from '../runtime/sessions/text-files.js';
import type { CheckpointRef, Stage, StageContext, StagePlan, StageResult, StageValues } from './context.js';

interface Params {
  readonly weights?: string;
  readonly config?: string;
  readonly tokenizer?: string;
  readonly directory: string;
  readonly format: 'safetensors' | 'modelopt' | 'compressed-tensors';
  readonly dtype: 'auto' | 'fp16' | 'bf16' | 'fp32';
  readonly lm_head: 'bf16' | 'nvfp4';
  readonly activations: 'auto' | 'none';
  readonly shard_size_mib: number;
}

const TYPES = { auto: 'auto', fp16: 'f16', bf16: 'bf16', fp32: 'f32' } as const;
const CONFIG_DTYPES: Partial<Record<FileType, 'float16' | 'bfloat16' | 'float32'>> = {
  f16: 'float16',
  bf16: 'bfloat16',
  f32: 'float32',
};
const MIB = 1024 * 1024;

/** The file to export: the one that is named, a checkpoint's, or the one that was loaded. */
function weightsOf(params: Params, inputs: StageValues, ctx: StageContext): string | null {
  if (params.weights !== undefined) return params.weights;
  const checkpoint = inputs['checkpoint'] as Partial<CheckpointRef> | undefined;
  if (checkpoint?.path !== undefined) return ctx.files.join(checkpoint.path, WEIGHTS_FILE);
  const weights = inputs['weights'] as Partial<Weights> | undefined;
  return weights?.path ?? null;
}

/** Text of config.json where the pipeline has it and the files need not. */
function configTextOf(params: Params, inputs: StageValues): string | undefined {
  if (params.weights !== undefined || params.config !== undefined) return undefined;
  const { configText } = (inputs['model'] ?? inputs['weights'] ?? {}) as Partial<LoadedModel>;
  return configText;
}

/** What import-weights kept beside a `.dat`. */
async function readExtras(weights: string, ctx: StageContext): Promise<Extras> {
  const path = weights.replace(/\.dat$/, '.extras.safetensors');
  const extras = new Map<string, Extra>();
  if (path === weights || !(await ctx.files.exists(path))) return extras;
  const index = await ctx.engine.files.indexSafetensors(path);
  for (const entry of index.entries)
    extras.set(entry.name, {
      from: { index, entry },
      data: await ctx.engine.files.readEntry(index, entry.name),
    });
  return extras;
}

interface Opened {
  readonly model: SourceModel;
  readonly made: ExportItems;
  readonly shards: readonly Shard[];
}

async function open(
  params: Params,
  weights: string,
  inputs: StageValues,
  ctx: StageContext,
): Promise<Opened> {
  const configText = configTextOf(params, inputs);
  const model = await readSourceModel(ctx.files, ctx.engine.files, weights, {
    ...(params.config !== undefined && { configPath: params.config }),
    ...(configText !== undefined && { configText }),
    strict: true,
  });
  const made = exportItems(model, await readExtras(weights, ctx), {
    format: params.format,
    dtype: TYPES[params.dtype],
    quantisedHead: params.lm_head === 'nvfp4',
    activations: params.activations === 'auto',
  });
  return { model, made, shards: shardItems(made.items, params.shard_size_mib * MIB) };
}

async function plan(params: Params, inputs: StageValues, ctx: StageContext): Promise<StagePlan> {
  const values = inputs['model'] === undefined ? {} : { model: inputs['model'] };
  const weights = params.weights ?? null;
  const target = `${params.format} in ${params.directory}`;
  // A checkpoint of this run is not there yet.
  if (weights === null) return { summary: target, bytes: {}, values };
  const { made, shards } = await open(params, weights, inputs, ctx);
  const bytes = made.items.reduce((sum, item) => sum + itemBytes(item), 0);
  return { summary: `${target}, ${shards.length} files`, bytes: {}, diskBytes: { export: bytes }, values };
}

function quantisationOf(params: Params, { facts }: ExportItems): object | null {
  if (params.format === 'safetensors') return null;
  return params.format === 'modelopt' ? modelOptConfig(facts) : compressedTensorsConfig(facts);
}

/** Files of an older export that readers would take instead of, or along with, the new ones. */
async function refuseLeftovers(params: Params, shards: readonly Shard[], ctx: StageContext): Promise<void> {
  const { files } = ctx;
  const rivals = [
    ...(shards.length > 1 ? ['model.safetensors'] : ['model.safetensors.index.json']),
    ...(params.format === 'modelopt' ? [] : ['hf_quant_config.json']),
  ];
  for (const name of rivals) {
    const path = files.join(params.directory, name);
    if (!(await files.exists(path))) continue;
    throw new Q4Error(
      'Q4507',
      `${name} of another export stands in the directory, and readers would use it`,
      {
        file: path,
        hint: 'remove that export, or choose another directory',
        at: ['directory'],
      },
    );
  }
}

/** config.json and the tokenizer. */
async function writeCompanions(
  params: Params,
  weights: string,
  { model, made }: Opened,
  inputs: StageValues,
  ctx: StageContext,
): Promise<readonly string[]> {
  const { files } = ctx;
  const { directory } = params;
  const config = changedConfig(model.configText, {
    dtype: CONFIG_DTYPES[made.dtype] ?? null,
    tied: model.config.tieWordEmbeddings,
    quantization: quantisationOf(params, made),
  });
  await files.writeText(files.join(directory, 'config.json'), config);
  if (params.format === 'modelopt')
    await files.writeText(files.join(directory, 'hf_quant_config.json'), modelOptQuantConfig(made.facts));
  const { text } = (inputs['model'] ?? inputs['weights'] ?? {}) as Partial<LoadedModel>;
  if (params.tokenizer === undefined && params.weights === undefined && text)
    return writeTextFiles(files, text.files, directory);
  const home = params.tokenizer?.replace(/[^/\\]*\.json$/, '') ?? homeOf(weights);
  return copyTextFiles(files, home, directory);
}

async function run(params: Params, inputs: StageValues, ctx: StageContext): Promise<StageResult> {
  const weights = weightsOf(params, inputs, ctx);
  if (weights === null)
    throw new Q4Error('Q4507', 'there are no weights to export', {
      hint: 'name a .dat with weights, or put the stage behind a checkpoint',
      at: ['weights'],
    });
  const opened = await open(params, weights, inputs, ctx);
  const { model, made, shards } = opened;
  await refuseLeftovers(params, shards, ctx);
  const total = made.items.reduce((sum, item) => sum + itemBytes(item), 0);
  const started = ctx.stopwatch();
  const written: Transcoded[] = [];
  let done = 0;
  try {
    // Every shard is whole before the first is put in place: a value that is refused leaves nothing.
    for (const { file, items } of shards) {
      const before = done;
      const own = items.reduce((sum, item) => sum + itemBytes(item), 0);
      const path = ctx.files.join(params.directory, file);
      const options: TranscodeOptions = {
        metadata: { format: 'pt' },
        onProgress: (part, all) => {
          const share = all > 0 ? part / all : 1;
          ctx.emit({ ev: 'progress', done: Math.round(before + own * share), total, unit: 'bytes' });
        },
        signal: ctx.signal,
      };
      written.push(await ctx.engine.files.transcode(path, 'safetensors', items, options));
      done += own;
    }
    const copied = await writeCompanions(params, weights, opened, inputs, ctx);
    for (const shard of written) await shard.commit();
    // The index is what makes shards a checkpoint.
    if (shards.length > 1)
      await ctx.files.writeText(
        ctx.files.join(params.directory, 'model.safetensors.index.json'),
        shardIndex(shards),
      );
    const { tieWordEmbeddings: tied } = model.config;
    const seconds = started();
    return {
      values: {},
      outputs: {
        directory: params.directory,
        format: params.format,
        files: shards.map(({ file }) => file),
        tensors: made.items.length,
        dtype: made.dtype,
        tied,
        untied_because:
          model.configTies && !tied
            ? 'the weights hold a head of their own, so tie_word_embeddings is now false'
            : null,
        activations: made.facts.activations,
        changed: made.changes.map((change) => ({ ...change })),
        text_files: [...copied],
        bytes: total,
        seconds,
        bytes_per_second: seconds > 0 ? total / seconds : 0,
      },
    };
  } catch (error) {
    throw ctx.signal.aborted ? ctx.interrupted('the export is not whole') : error;
  } finally {
    for (const shard of written) shard.dispose();
  }
}

export const exportWeights: Stage<Params> = {
  uses: 'export-weights',
  takes: [['checkpoint', 'weights']],
  mayTake: ['model'],
  gives: [],
  plan,
  run,
};
