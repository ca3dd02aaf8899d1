/** Full-parameter training: straight-through NVFP4 on masters, checkpoints, evaluation, and a stop at divergence. */
import { Q4Error } from '../runtime/errors.js';
import { printProgram } from '../runtime/graph/print.js';
import { changedCodes } from '../runtime/sessions/changed-codes.js';
import type { LoadedModel, PlannedModel } from '../runtime/sessions/model.js';
import { measureRoofs, memoryText, profileOf, profileText } from '../runtime/sessions/profile.js';
import {
  planTraining,
  trainingPrograms,
  TrainingSession,
  type TrainingOptions,
} from '../runtime/sessions/training.js';
import { nothingMoved, trainingReport } from '../runtime/sessions/training-progress.js';
import { readTrainingData, type DataParams, type TrainingData } from '../runtime/sessions/training-data.js';
import { previewBatch, renderPreview, renderReport } from '../runtime/text/preview.js';
import type {
  CheckpointRef,
  Json,
  Stage,
  StageContext,
  StagePlan,
  StageResult,
  StageText,
  StageValues,
} from './context.js';
import { TrainingRun, type TrainingRunParams } from './training-run.js';

interface Params extends DataParams, TrainingRunParams {
  readonly steps?: number;
  readonly epochs?: number;
  readonly optimizer: {
    readonly betas: readonly [number, number];
    readonly eps: number;
    readonly weight_decay: number;
    readonly decay: 'matrices' | 'all' | 'none';
  };
  readonly max_grad_norm: number;
  readonly loss: 'cross_entropy' | 'scalar';
  readonly eval?: NonNullable<DataParams['eval']> & { readonly every: number };
  readonly recompute: 'none' | 'block';
  readonly gradients: 'auto' | 'fp32';
  readonly memory: { readonly limit_gib?: number };
}

const GIB = 1024 ** 3;

const optionsOf = (params: Params, seed: number): TrainingOptions => ({
  batch: params.batch_size,
  tokens: params.seq_len,
  loss: params.loss,
  recompute: params.recompute,
  gradients: params.gradients,
  maxGradNorm: params.max_grad_norm,
  betas: params.optimizer.betas,
  eps: params.optimizer.eps,
  weightDecay: params.optimizer.weight_decay,
  decay: params.optimizer.decay,
  accumulates: params.accumulate > 1,
  evaluates: params.eval !== undefined,
  seed,
});

const checkTrains = (masters: string): void => {
  if (masters !== 'none') return;
  throw new Q4Error('Q4502', 'a model without masters cannot be trained', {
    hint: 'set masters: fp32 (or bf16) on the build-model stage',
  });
};

async function plan(params: Params, inputs: StageValues, ctx: StageContext): Promise<StagePlan> {
  const model = inputs['model'] as PlannedModel;
  checkTrains(model.layout.masters);
  const bytes = planTraining(
    model.layout,
    ctx.engine.device.kind,
    model.activation,
    optionsOf(params, ctx.seed),
  );
  const limit = params.memory.limit_gib;
  if (limit !== undefined && bytes.total > limit * GIB)
    throw new Q4Error(
      'Q4405',
      `training needs ${(bytes.total / GIB).toFixed(2)} GiB, over the limit of ${limit} GiB`,
      {
        hint: 'lower batch_size or seq_len, set recompute: block, or raise memory.limit_gib',
        at: ['memory', 'limit_gib'],
      },
    );
  const { moments, gradients, activations, io } = bytes;
  const length = params.steps === undefined ? `${params.epochs} epochs` : `${params.steps} steps`;
  const saved = bytes.weights + bytes.masters + moments;
  const kept = params.checkpoint.keep_last + params.checkpoint.keep_best + 1;
  return {
    summary: `${length} of ${params.batch_size * params.accumulate} × ${params.seq_len} tokens, ${model.layout.trainable.length} parameters`,
    bytes: {},
    transientBytes: { moments, gradients, activations, io },
    diskBytes: { checkpoints: saved * (params.checkpoint.every > 0 ? kept : 2) },
    values: { model },
  };
}

async function run(params: Params, inputs: StageValues, ctx: StageContext): Promise<StageResult> {
  const model = inputs['model'] as LoadedModel;
  checkTrains(model.layout.masters);
  const { vocabSize } = model.layout.config;
  const data = await readTrainingData(params, model.text, vocabSize, ctx.seed, (path) =>
    ctx.files.readLines(path),
  );
  const rowsPerStep = params.batch_size * params.accumulate;
  const steps = params.steps ?? data.stream().stepsForEpochs(params.epochs!, rowsPerStep);
  const options = { ...optionsOf(params, ctx.seed), evaluates: data.evaluation !== null };
  const peakBefore = ctx.engine.memory.peakBytes;
  const session = await TrainingSession.open(ctx.engine, model, options);
  let training: TrainingRun;
  let failure: Q4Error | null;
  let used: number;
  let checkpoint: CheckpointRef;
  try {
    training = new TrainingRun(params, ctx, session, data, steps);
    await training.resume();
    failure = await training.train();
    const { allocatedBytes, peakBytes } = ctx.engine.memory;
    // An earlier stage may have held more; a session takes what it needs when it opens.
    used = peakBytes > peakBefore ? peakBytes : allocatedBytes;
    checkpoint = await training.save();
  } finally {
    session.dispose();
  }
  return outcome(training, data, { used, failure, checkpoint }, options, ctx);
}

/** What is told when the steps are over, whatever the reason. */
async function outcome(
  training: TrainingRun,
  data: TrainingData,
  end: { used: number; failure: Q4Error | null; checkpoint: CheckpointRef },
  options: TrainingOptions,
  ctx: StageContext,
): Promise<StageResult> {
  const { model, progress, ops } = training;
  const { layout, activation } = model;
  const changedShare = await changedCodes(ctx.engine, model);
  const planned = planTraining(layout, ctx.engine.device.kind, activation, options);
  const profile = ops.length > 0 ? profileOf(ops, await measureRoofs(ctx.engine, activation)) : null;
  if (profile)
    ctx.emit({ ev: 'note', message: `the last step\n${profileText(profile)}\n\n${memoryText(planned)}` });
  if (nothingMoved(progress, changedShare))
    ctx.emit({
      ev: 'warning',
      message: `${progress.step} steps changed not one NVFP4 code: the model answers exactly as before`,
      hint: 'masters did move, but by less than a code; raise learning_rate or train longer',
    });
  const bytes = { usedBytes: end.used, plannedBytes: planned.total };
  const told = trainingReport(progress, { ...bytes, changedShare, data: data.reports, profile });
  const outputs = told as unknown as StageResult['outputs'];
  const values = { model, checkpoint: end.checkpoint, metrics: outputs };
  return { values, outputs, ...(end.failure && { failure: end.failure }) };
}

async function describe(
  params: Params,
  inputs: StageValues,
  ctx: StageContext,
): Promise<readonly StageText[]> {
  const { layout, activation } = inputs['model'] as PlannedModel;
  const programs = trainingPrograms(layout, ctx.engine.device.kind, activation, optionsOf(params, ctx.seed));
  return [...programs].map(([title, build]) => {
    const { program } = build();
    return { title, text: printProgram(program), data: program as unknown as Json };
  });
}

async function preview(
  params: Params,
  inputs: StageValues,
  ctx: StageContext,
  samples: number,
): Promise<readonly StageText[]> {
  const { layout, readText } = inputs['model'] as PlannedModel;
  const text = await readText();
  const { vocabSize } = layout.config;
  const data = await readTrainingData(params, text, vocabSize, ctx.seed, (path) => ctx.files.readLines(path));
  const rows = previewBatch(data.stream().next(Math.max(1, samples)), text?.tokenizer ?? null);
  const reports = data.reports.map((report) => `${renderReport(report)}\n`).join('');
  return [
    {
      title: `the first ${rows.length} rows of training`,
      text: reports + renderPreview(rows, text?.tokenizer ?? null),
      data: { reports: data.reports, rows } as unknown as Json,
    },
  ];
}

export const train: Stage<Params> = {
  uses: 'train',
  takes: [['model']],
  gives: ['model', 'checkpoint', 'metrics'],
  plan,
  run,
  describe,
  preview,
};
