/** Turns a Hugging Face checkpoint, or another `.dat`, into a `.dat` with its config and tokenizer. */
import type { FileType, ScaleSearch, Transcoded, TranscodeItem } from '../runtime/engine/types.js';
import type { ScaleLevel } from '../runtime/models/model.js';
import { elementCount } from '../runtime/program.js';
import { changedConfig } from '../runtime/sessions/checkpoint-config.js';
import { importItems, type ImportItems } from '../runtime/sessions/import-items.js';
import { quantiseTable } from '../runtime/sessions/quantise-table.js';
import { homeOf, readSourceModel, type SourceModel } from '../runtime/sessions/source-model.js';
import { copyTextFiles } from '../runtime/sessions/text-files.js';
import { Q4Error } from '../runtime/errors.js';
import type { Stage, StageContext, StagePlan, StageResult } from './context.js';

interface Params {
  readonly source: string;
  readonly config?: string;
  readonly tokenizer?: string;
  readonly directory: string;
  readonly scales: 'amax' | 'four-over-six' | 'mse';
  readonly global_scale: ScaleLevel;
  readonly shared_global_scale: boolean;
  readonly quantize: readonly string[];
  readonly lm_head: 'auto' | 'nvfp4' | 'bf16' | 'tied';
  readonly dtype: 'keep' | 'fp16' | 'bf16' | 'fp32';
  readonly requantize: boolean;
  readonly strict: boolean;
}

const TYPES: Readonly<Record<Params['dtype'], 'keep' | FileType>> = {
  keep: 'keep',
  fp16: 'f16',
  bf16: 'bf16',
  fp32: 'f32',
};
const SEARCHES: Readonly<Record<Params['scales'], ScaleSearch>> = {
  amax: 'amax',
  'four-over-six': 'four_over_six',
  mse: 'mse',
};

const WEIGHTS = 'model.dat';
/** What the source has and a `.dat` has no place for; export-weights looks for it beside the `.dat`. */
const EXTRAS = 'model.extras.safetensors';

interface Opened {
  readonly model: SourceModel;
  readonly made: ImportItems;
}

async function open(params: Params, ctx: StageContext): Promise<Opened> {
  const model = await readSourceModel(ctx.files, ctx.engine.files, params.source, {
    ...(params.config !== undefined && { configPath: params.config }),
    strict: params.strict,
  });
  const made = importItems(model, {
    scales: SEARCHES[params.scales],
    globalScale: params.global_scale,
    sharedGlobalScale: params.shared_global_scale,
    quantize: params.quantize,
    head: params.lm_head,
    dtype: TYPES[params.dtype],
    requantize: params.requantize,
  });
  return { model, made };
}

const BYTES: Partial<Record<FileType, number>> = { f16: 2, bf16: 2, f32: 4 };
const itemBytes = (item: TranscodeItem): number =>
  item.kind === 'quantise'
    ? (elementCount(item.shape) * 9) / 16
    : elementCount(item.shape) * (BYTES[item.type] ?? 1);

async function plan(params: Params, _: unknown, ctx: StageContext): Promise<StagePlan> {
  const { model, made } = await open(params, ctx);
  const { quantised, takenOver, plain } = made;
  const bytes = made.items.reduce((sum, item) => sum + itemBytes(item), 0);
  return {
    summary:
      `${model.format}: ${quantised.length} matrices to quantise (${params.scales}), ` +
      `${takenOver.length} taken over, ${plain.length} plain`,
    bytes: {},
    diskBytes: { weights: bytes },
    values: {},
  };
}

/** Written when all values are known to be good, before the `.dat` is put in place: with it the import is finished. */
async function writeCompanions(
  params: Params,
  { model, made }: Opened,
  ctx: StageContext,
): Promise<readonly string[]> {
  const { files } = ctx;
  const config = changedConfig(model.configText, { dtype: null, tied: made.tied, quantization: null });
  await files.writeText(files.join(params.directory, 'config.json'), config);
  const home = params.tokenizer === undefined ? homeOf(params.source) : folderOf(params.tokenizer);
  const copied = await copyTextFiles(files, home, params.directory);
  const extras = files.join(params.directory, EXTRAS);
  // An older import may have left some there: they must not be taken for this one's.
  if (model.extras.length > 0 || (await files.exists(extras))) {
    const items = model.extras.map((source): TranscodeItem => ({
      kind: 'copy',
      name: source.entry.name,
      shape: source.entry.shape,
      type: source.entry.type,
      source,
      part: 'data',
    }));
    const metadata = { format: 'pt', source: model.format };
    const beside = await ctx.engine.files.transcode(extras, 'safetensors', items, { metadata });
    await beside.commit().finally(() => beside.dispose());
  }
  return copied;
}

const folderOf = (path: string): string => (path.endsWith('.json') ? path.replace(/[^/\\]*$/, '') : path);

function refuseSameFolder(params: Params, ctx: StageContext): void {
  const inside = (folder: string): string => ctx.files.join(folder, 'config.json');
  if (inside(params.directory) !== inside(homeOf(params.source))) return;
  throw new Q4Error('Q4507', 'the import would overwrite the config.json of its source', {
    file: params.directory,
    hint: 'choose another directory',
    at: ['directory'],
  });
}

async function run(params: Params, _: unknown, ctx: StageContext): Promise<StageResult> {
  refuseSameFolder(params, ctx);
  const opened = await open(params, ctx);
  const { model, made } = opened;
  const weights = ctx.files.join(params.directory, WEIGHTS);
  const started = ctx.stopwatch();
  let written: Transcoded | undefined;
  try {
    written = await ctx.engine.files.transcode(weights, 'dat', made.items, {
      onProgress: (done, total) => ctx.emit({ ev: 'progress', done, total, unit: 'bytes' }),
      signal: ctx.signal,
    });
    const copied = await writeCompanions(params, opened, ctx);
    const bytes = await written.commit();
    const seconds = started();
    const table = quantiseTable(written.quantised);
    return {
      values: {},
      outputs: {
        weights,
        directory: params.directory,
        config: ctx.files.join(params.directory, 'config.json'),
        source_format: model.format,
        tied: made.tied,
        quantised_tensors: made.quantised.length,
        taken_over_tensors: made.takenOver.length,
        plain_tensors: made.plain.length,
        left_out: [...model.leftOut],
        kept_beside: model.extras.length,
        text_files: [...copied],
        scales: params.scales,
        quantisation: { families: [...table.families], tensors: [...table.tensors] },
        bytes,
        source_bytes: written.sourceBytes,
        seconds,
        bytes_per_second: seconds > 0 ? written.sourceBytes / seconds : 0,
      },
    };
  } catch (error) {
    throw ctx.signal.aborted ? ctx.interrupted('no weights were written') : error;
  } finally {
    written?.dispose();
  }
}

export const importWeights: Stage<Params> = {
  uses: 'import-weights',
  takes: [],
  gives: [],
  plan,
  run,
};
