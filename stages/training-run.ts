/** The steps of a training run, with evaluation and checkpoints between them, and what ends it early. */
import { Q4Error } from '../runtime/errors.js';
import { wiringFingerprint } from '../runtime/models/parameters.js';
import { learningRate, type ScheduleOptions } from '../runtime/models/schedule.js';
import type { LoadedModel } from '../runtime/sessions/model.js';
import { restoreState, saveState } from '../runtime/sessions/saved-state.js';
import type { StepResult, TrainingSession } from '../runtime/sessions/training.js';
import type { DataParams, TrainingData } from '../runtime/sessions/training-data.js';
import { newProgress, recordStep, type Progress } from '../runtime/sessions/training-progress.js';
import type { DataCursor } from '../runtime/text/batching.js';
import type { CheckpointRef, Json, StageContext } from './context.js';

/** Those of the train stage's parameters that its loop reads. */
export interface TrainingRunParams extends Pick<DataParams, 'batch_size'> {
  readonly accumulate: number;
  readonly learning_rate: number;
  readonly schedule: Omit<ScheduleOptions, 'decay_steps'> & { readonly decay_steps?: number };
  readonly eval?: { readonly every: number };
  readonly checkpoint: { readonly every: number; readonly keep_last: number; readonly keep_best: number };
  readonly log_every: number;
  readonly stop_on_divergence: boolean;
  readonly profile: boolean;
}

/** One training run, from wherever the newest checkpoint left off. */
export class TrainingRun {
  progress: Progress;
  readonly #watch: () => number;
  #ops: StepResult['ops'] = [];
  #stepSeconds = 0;
  #saved = -1;

  constructor(
    private readonly params: TrainingRunParams,
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
