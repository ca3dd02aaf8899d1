/** Full-parameter training: straight-through NVFP4 on masters, checkpoints, evaluation, and a stop at divergence. */
import { Q4Error } from '../runtime/errors.js';
import { printProgram } from '../runtime/graph/print.js';
import { learningRate, type ScheduleOptions } from '../runtime/models/schedule.js';
import { wiringFingerprint } from '../runtime/models/parameters.js';
import { changedCodes } from '../runtime/sessions/changed-codes.js';
import type { LoadedModel, PlannedModel } from '../runtime/sessions/model.js';
import { measureRoofs, memoryText, profileOf, profileText } from '../runtime/sessions/profile.js';
import { restoreState, saveState } from '../runtime/sessions/saved-state.js';
import {
  planTraining,
  trainingPrograms,
  TrainingSession,
  type StepResult,
  type TrainingOptions,
} from '../runtime/sessions/training.js';
import {
  newProgress,
  nothingMoved,
  recordStep,
  trainingReport,
  type Progress,
} from '../runtime/sessions/training-progress.js';
import { readTrainingData, type DataParams, type TrainingData } from '../runtime/sessions/training-data.js';
import { previewBatch, renderPreview, renderReport } from '../runtime/text/preview.js';
import type { DataCursor } from '../runtime/text/batching.js';
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

interface Params extends DataParams {
  readonly steps?: number;
  readonly epochs?: number;
  readonly accumulate: number;
  readonly learning_rate: number;
  readonly schedule: Omit<ScheduleOptions, 'decay_steps'> & { readonly decay_steps?: number };
  readonly optimizer: {
    readonly betas: readonly [number, number];
    readonly eps: number;
    readonly weight_decay: number;
    readonly decay: 'matrices' | 'all' | 'none';
  };
  readonly max_grad_norm: number;
  readonly loss: 'cross_entropy' | 'scalar';
  readonly eval?: NonNullable<DataParams['eval']> & { readonly every: number };
  readonly checkpoint: { readonly every: number; readonly keep_last: number; readonly keep_best: number };
  readonly recompute: 'none' | 'block';
  readonly gradients: 'auto' | 'fp32';
  readonly memory: { readonly limit_gib?: number };
  readonly log_every: number;
  readonly stop_on_divergence: boolean;
  readonly profile: boolean;
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

/** One training run, from wherever the newest checkpoint left off. */
class TrainingRun {
  progress: Progress;
  readonly #watch: () => number;
  #ops: StepResult['ops'] = [];
  #stepSeconds = 0;
  #saved = -1;

  constructor(
    private readonly params: Params,
    private readonly ctx: StageContext,
    private readonly session: TrainingSession,
    private readonly data: TrainingData,
    private readonly steps: number,
  ) {
    this.progress = newProgress(wiringFingerprint(session.model.layout.config));
    this.#watch = ctx.stopwatch();
  }

  get model(): LoadedModel {
    return this.session.model;
  }

  get ops(): StepResult['ops'] {
    return this.#ops;
  }

  /** Goes on from the newest checkpoint, if there is one. */
  async resume(): Promise<CheckpointRef | null> {
    const { ctx, session } = this;
    const ref = await ctx.checkpoints.latest();
    if (!ref) return null;
    const saved = ref.meta as unknown as Progress;
    if (saved.fingerprint !== this.progress.fingerprint)
      throw new Q4Error('Q4503', 'the checkpoint is of another model', {
        file: ref.path,
        expected: `wiring ${this.progress.fingerprint}`,
        found: `wiring ${saved.fingerprint}`,
        hint: 'start anew with --fresh',
      });
    const { model, moments } = session;
    await restoreState(ctx.engine.files, model, (file) => ctx.files.join(ref.path, file), moments);
    this.progress = { ...saved };
    this.#saved = ref.step;
    ctx.emit({ ev: 'resume', step: ref.step, path: ref.path });
    return ref;
  }

  /** Null when all steps are done; the reason why not, otherwise. */
  async train(): Promise<Q4Error | null> {
    const { params, ctx, progress } = this;
    const stream = this.data.stream(progress.cursor);
    while (progress.step < this.steps) {
      const before = stream.cursor;
      const batches = Array.from({ length: params.accumulate }, () => stream.next(params.batch_size));
      const lr = this.#learningRate(progress.step);
      const began = this.#watch();
      const result = await this.session.step(batches, lr, progress.step, params.profile || ctx.profile);
      this.#ops = result.ops;
      if (!result.applied && params.stop_on_divergence) return this.#diverged(result, before);
      const tokens = batches.reduce((sum, batch) => sum + batch.tokens, 0);
      const seconds = this.#watch() - began;
      recordStep(progress, result, { lr, tokens, seconds, cursor: stream.cursor });
      this.#tell(result, lr, tokens, seconds);
      await this.#evaluateIfDue();
      await this.#saveIfDue();
      if (ctx.signal.aborted) {
        await this.save();
        throw ctx.interrupted(
          `after step ${progress.step} of ${this.steps}; the same command goes on from there`,
        );
      }
    }
    await this.#evaluateAtEnd();
    await this.save();
    return null;
  }

  #learningRate(step: number): number {
    const { learning_rate: peak, schedule } = this.params;
    // A tenth of the run is what wsd decays over unless told otherwise.
    const decay_steps = schedule.decay_steps ?? Math.ceil(this.steps / 10);
    return learningRate(peak, step, this.steps, { ...schedule, decay_steps });
  }

  #tell(result: StepResult, lr: number, tokens: number, seconds: number): void {
    const { progress, ctx, params } = this;
    // The estimate follows the last steps; the first one, which touches all memory, is forgotten soon.
    this.#stepSeconds = this.#stepSeconds === 0 ? seconds : 0.8 * this.#stepSeconds + 0.2 * seconds;
    if (progress.step % params.log_every !== 0 && progress.step !== this.steps) return;
    ctx.emit({
      ev: 'step',
      step: progress.step,
      steps: this.steps,
      loss: result.loss,
      grad_norm: result.gradNorm,
      lr,
      applied: result.applied,
      changed_share: result.changedShare,
      tokens_per_s: tokens / seconds,
      eta_s: this.#stepSeconds * (this.steps - progress.step),
    });
  }

  async #evaluate(): Promise<void> {
    const { progress, ctx, data } = this;
    const loss = await this.session.evaluate(data.evaluation!);
    progress.eval_losses.push({ step: progress.step, loss });
    ctx.emit({ ev: 'eval', step: progress.step, loss });
  }

  async #evaluateIfDue(): Promise<void> {
    const every = this.params.eval?.every ?? 0;
    if (this.data.evaluation && every > 0 && this.progress.step % every === 0) await this.#evaluate();
  }

  async #evaluateAtEnd(): Promise<void> {
    const { eval_losses: done, step } = this.progress;
    if (this.data.evaluation && done.at(-1)?.step !== step) await this.#evaluate();
  }

  async #saveIfDue(): Promise<void> {
    const { every } = this.params.checkpoint;
    if (every > 0 && this.progress.step % every === 0) await this.save();
  }

  /** Everything the next step depends on, unless this step is saved already; to pin it, it is saved again. */
  async save(pinned = false): Promise<CheckpointRef> {
    const { ctx, params, progress, session } = this;
    const known = this.#saved === progress.step && !pinned ? await ctx.checkpoints.latest() : null;
    if (known) return known;
    const { keep_last: keepLast, keep_best: keepBest } = params.checkpoint;
    const evaluated = progress.eval_losses.at(-1);
    const score = evaluated?.step === progress.step ? { score: evaluated.loss } : {};
    const write = async (directory: string): Promise<void> => {
      const { model, moments } = session;
      await saveState(ctx.engine.files, model, (file) => ctx.files.join(directory, file), moments);
      await ctx.files.writeText(ctx.files.join(directory, 'config.json'), model.configText);
    };
    const meta = structuredClone(progress) as unknown as Json;
    const ref = await ctx.checkpoints.commit(progress.step, meta, write, {
      keepLast,
      keepBest,
      pinned,
      ...score,
    });
    this.#saved = progress.step;
    return ref;
  }

  /** The step was not applied: the state is that of the step before, and it is kept whatever comes. */
  async #diverged(result: StepResult, cursor: DataCursor): Promise<Q4Error> {
    this.progress.cursor = cursor;
    const ref = await this.save(true);
    const what = Number.isFinite(result.loss) ? `gradient norm ${result.gradNorm}` : `loss ${result.loss}`;
    return new Q4Error(
      'Q4801',
      `training diverged: ${what} at step ${this.progress.step + 1}; the step was not applied`,
      {
        file: ref.path,
        hint: 'lower learning_rate, add warmup_steps or clip with max_grad_norm; the last healthy checkpoint is kept',
      },
    );
  }
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
