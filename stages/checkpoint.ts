/** Saves the model: a committed checkpoint, and on request a `.dat` for others. */
import {
  exportEntries,
  saveState,
  WEIGHTS_FILE,
  type ExportOptions,
} from '../runtime/sessions/saved-state.js';
import type { LoadedModel, PlannedModel } from '../runtime/sessions/model.js';
import type { CheckpointRef, Stage, StageContext, StagePlan, StageResult, StageValues } from './context.js';
import { tensorBytes } from '../runtime/program.js';

interface Params {
  readonly export?: string;
  readonly dtype: 'keep' | 'fp16' | 'bf16' | 'fp32';
  readonly global_scale: ExportOptions['globalScale'];
}

const TYPES = { keep: 'keep', fp16: 'f16', bf16: 'bf16', fp32: 'f32' } as const;

async function plan(params: Params, inputs: StageValues): Promise<StagePlan> {
  const { layout } = inputs['model'] as PlannedModel;
  const bytes = layout.parameters.reduce(
    (sum, { weight }) => sum + tensorBytes(weight.dtype, weight.shape),
    0,
  );
  return {
    summary: params.export === undefined ? 'a checkpoint' : `a checkpoint and ${params.export}`,
    bytes: {},
    diskBytes: { checkpoint: bytes, ...(params.export !== undefined && { export: bytes }) },
    values: { model: inputs['model'] },
  };
}

/** The checkpoint that training ended with, or a new one of the weights alone. */
async function commit(model: LoadedModel, inputs: StageValues, ctx: StageContext): Promise<CheckpointRef> {
  const known = inputs['checkpoint'] as CheckpointRef | undefined;
  if (known) return known;
  const write = async (directory: string): Promise<void> => {
    await saveState(ctx.engine.files, model, (file) => ctx.files.join(directory, file), null);
    await ctx.files.writeText(ctx.files.join(directory, 'config.json'), model.configText);
  };
  return ctx.checkpoints.commit(0, {}, write, { keepLast: 1 });
}

async function run(params: Params, inputs: StageValues, ctx: StageContext): Promise<StageResult> {
  const model = inputs['model'] as LoadedModel;
  const checkpoint = await commit(model, inputs, ctx);
  const weights = await ctx.files.sha256(ctx.files.join(checkpoint.path, WEIGHTS_FILE));
  const outputs = { path: checkpoint.path, step: checkpoint.step, weights_sha256: weights };
  if (params.export === undefined) return { values: { model, checkpoint }, outputs };
  const entries = exportEntries(model, { dtype: TYPES[params.dtype], globalScale: params.global_scale });
  const written = await ctx.engine.files.writeDat(model.store, params.export, entries, {
    onProgress: (done, total) => ctx.emit({ ev: 'progress', done, total, unit: 'bytes' }),
    signal: ctx.signal,
  });
  return {
    values: { model, checkpoint },
    outputs: {
      ...outputs,
      export: params.export,
      export_bytes: written.bytes,
      export_sha256: written.sha256,
      tied: model.layout.config.tieWordEmbeddings,
    },
  };
}

export const checkpoint: Stage<Params> = {
  uses: 'checkpoint',
  takes: [['model']],
  mayTake: ['checkpoint'],
  gives: ['model', 'checkpoint'],
  plan,
  run,
};
