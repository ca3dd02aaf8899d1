/** Trains a loaded model step by step: micro batches forward and backward, then one optimizer update. */
import type { Engine, Executable } from '../engine/types.js';
import { lower, type Lowered } from '../graph/lower.js';
import { randomNormal } from '../graph/ops/filling.js';
import { Recorder } from '../graph/recorder.js';
import type { DeviceKind } from '../graph/types.js';
import { withGradients, type GradientDtype } from '../models/gradients.js';
import { modelTensors, type Model, type ModelParameter } from '../models/model.js';
import { quantizeProgram } from '../models/quantise-programs.js';
import { trainedBy, trainProgram, type Loss } from '../models/train-program.js';
import { updateProgram } from '../models/update-program.js';
import { elementCount } from '../program.js';
import { planMemory, type MemoryPlan } from '../graph/memory-plan.js';
import { ProgramHost, runOnce } from './host.js';
import type { LoadedModel } from './model.js';
import { withCosts, type ProfiledOp } from './profile.js';

export interface TrainingOptions {
  /** Rows of a micro batch, and tokens in a row. */
  readonly batch: number;
  readonly tokens: number;
  readonly loss: Loss;
  readonly recompute: 'none' | 'block';
  readonly gradients: GradientDtype;
  /** 0: never clip. */
  readonly maxGradNorm: number;
  readonly betas: readonly [number, number];
  readonly eps: number;
  readonly weightDecay: number;
  readonly decay: 'matrices' | 'all' | 'none';
  /** More than one micro batch a step will be run. */
  readonly accumulates: boolean;
  readonly evaluates: boolean;
  readonly seed: number;
}

/** One micro batch of N = batch · tokens rows, as the programs read it. */
export interface MicroBatch {
  readonly ids: Int32Array;
  readonly positions: Int32Array;
  /** First row of the same sequence that each row sees. */
  readonly attendFrom: Int32Array;
  /** The token that should follow each row; below 0: does not count. */
  readonly labels: Int32Array;
  /** Rows whose label counts. */
  readonly counted: number;
}

export interface StepResult {
  readonly loss: number;
  /** Before clipping. */
  readonly gradNorm: number;
  /** False when loss or gradient was not finite; nothing has changed then. */
  readonly applied: boolean;
  /** Share of the NVFP4 codes that this update changed. */
  readonly changedShare: number;
  /** Device seconds: forward and backward, and the update. */
  readonly seconds: { readonly gradients: number; readonly update: number };
  /** Only with `profile`. */
  readonly ops: readonly ProfiledOp[];
}

const PREFIX = 'train/';
const DECAYS: Record<TrainingOptions['decay'], (parameter: ModelParameter) => boolean> = {
  matrices: ({ decay }) => decay,
  all: () => true,
  none: () => false,
};

type ProgramName = 'overwrite' | 'accumulate' | 'evaluate' | 'update' | 'quantize';

/** The programs of a training run; what `plan` counts is what runs. */
export function trainingPrograms(
  layout: Model,
  device: DeviceKind,
  activation: LoadedModel['activation'],
  options: TrainingOptions,
): ReadonlyMap<ProgramName, () => Lowered> {
  const { batch, tokens, loss, recompute, gradients, accumulates, maxGradNorm } = options;
  const model = withGradients(layout, { gradients, activation, accumulates });
  const micro = { model, device, activation, batch, tokens, loss, recompute, prefix: PREFIX };
  const programs = new Map<ProgramName, () => Lowered>([
    ['overwrite', () => trainProgram({ ...micro, accumulate: false })],
    ['update', () => updateProgram({ model, device, maxGradNorm, loss, decays: DECAYS[options.decay] })],
    ['quantize', () => quantizeProgram({ model, device })],
  ]);
  if (accumulates) programs.set('accumulate', () => trainProgram({ ...micro, accumulate: true }));
  if (options.evaluates)
    programs.set('evaluate', () =>
      trainProgram({ ...micro, accumulate: true, gradients: false, lossTensor: 'eval_loss' }),
    );
  return programs;
}

/** Device bytes by purpose while training: what the programs use together with the model itself. */
export function planTraining(
  model: Model,
  device: DeviceKind,
  activation: LoadedModel['activation'],
  options: TrainingOptions,
): MemoryPlan {
  const programs = [...trainingPrograms(model, device, activation, options).values()].map((build) => build());
  return planMemory(programs, modelTensors(model));
}

export class TrainingSession {
  readonly #host: ProgramHost;
  readonly #programs: ReadonlyMap<ProgramName, () => Lowered>;
  readonly #codes: number;

  private constructor(
    private readonly engine: Engine,
    readonly model: LoadedModel,
    private readonly options: TrainingOptions,
  ) {
    this.#host = new ProgramHost(engine, model.store);
    const { layout, activation } = model;
    this.#programs = trainingPrograms(layout, engine.device.kind, activation, options);
    this.#codes = layout.requantised.reduce((sum, { shape }) => sum + elementCount(shape), 0);
  }

  /** Takes all memory that training needs, and quantises the masters, as every update will. */
  static async open(engine: Engine, model: LoadedModel, options: TrainingOptions): Promise<TrainingSession> {
    const session = new TrainingSession(engine, model, options);
    try {
      session.#host.reserve([...session.#programs.values()].map((build) => build()));
      for (const name of session.#programs.keys()) session.#program(name);
      await session.requantise();
      if (options.loss === 'scalar') await session.#drawTarget();
    } catch (error) {
      session.dispose();
      throw error;
    }
    return session;
  }

  /** Moments, beside the model's own tensors: what a checkpoint must hold too. */
  get moments(): readonly string[] {
    const trained = trainedBy(this.model.layout, this.options.loss);
    return trained.flatMap(({ training }) => [training!.m.name, training!.v.name]);
  }

  /** NVFP4 codes from the masters. */
  async requantise(): Promise<void> {
    if (this.#codes > 0) await this.#program('quantize').run();
  }

  /**
   * One optimizer step over micro batches that together make the batch; the loss is the mean over all counted tokens.
   * @param step 0-based; keys random numbers and bias correction
   */
  async step(
    batches: readonly MicroBatch[],
    learningRate: number,
    step: number,
    profile = false,
  ): Promise<StepResult> {
    const scale = this.#lossScale(batches);
    const ops: ProfiledOp[] = [];
    let gradients = 0;
    this.#writeHyper(learningRate, step);
    for (const [i, batch] of batches.entries()) {
      this.#feed(batch, scale);
      const program = this.#program(i === 0 ? 'overwrite' : 'accumulate');
      const result = await program.run({ profile });
      gradients += result.seconds;
      if (result.ops) ops.push(...withCosts(program.program, result.ops));
    }
    const optimizer = this.#program('update');
    const update = await optimizer.run({ profile });
    if (update.ops) ops.push(...withCosts(optimizer.program, update.ops));
    const [gradNorm = NaN, , applied = 0, loss = NaN] = this.#floats('stats');
    const changedShare = this.#changedShare();
    return {
      loss,
      gradNorm,
      applied: applied === 1,
      changedShare,
      seconds: { gradients, update: update.seconds },
      ops,
    };
  }

  /** Mean loss over the counted tokens of these batches; no gradients. */
  async evaluate(batches: readonly MicroBatch[]): Promise<number> {
    const scale = this.#lossScale(batches);
    this.model.store.write('eval_loss', Float32Array.of(0));
    for (const batch of batches) {
      this.#feed(batch, scale);
      await this.#program('evaluate').run();
    }
    return this.#floats('eval_loss')[0]!;
  }

  /** Lets go of programs, gradients, moments and inputs; weights and masters stay. */
  dispose(): void {
    this.#host.dispose();
  }

  #program(name: ProgramName): Executable {
    return this.#host.get(name, this.#programs.get(name)!).run;
  }

  #changedShare(): number {
    if (this.#codes === 0) return 0;
    const changed = this.model.store.read('changed') as Int32Array;
    return changed.reduce((sum, n) => sum + n, 0) / this.#codes;
  }

  #floats(name: string): Float32Array {
    return this.model.store.read(name) as Float32Array;
  }

  #lossScale(batches: readonly MicroBatch[]): number {
    const { loss, batch, tokens } = this.options;
    const { hiddenSize } = this.model.layout.config;
    const total =
      loss === 'scalar'
        ? batches.length * batch * tokens * hiddenSize
        : batches.reduce((sum, { counted }) => sum + counted, 0);
    return total > 0 ? 1 / total : 0;
  }

  #feed(batch: MicroBatch, scale: number): void {
    const { store } = this.model;
    store.write(`${PREFIX}in.ids`, batch.ids);
    store.write(`${PREFIX}in.positions`, batch.positions);
    store.write(`${PREFIX}in.attend_from`, batch.attendFrom);
    if (this.options.loss === 'cross_entropy') store.write(`${PREFIX}in.labels`, batch.labels);
    store.write(`${PREFIX}in.loss_scale`, Float32Array.of(scale));
  }

  #writeHyper(learningRate: number, step: number): void {
    const { betas, eps, weightDecay, seed } = this.options;
    const [beta1, beta2] = betas;
    const t = step + 1;
    const hyper = [learningRate, beta1, beta2, eps, weightDecay, 1 - beta1 ** t, 1 - beta2 ** t, 0];
    this.model.store.write('hyper', Float32Array.from(hyper));
    const high = Math.floor(seed / 2 ** 32);
    this.model.store.write('rng', Int32Array.of(seed | 0, high | 0, step, 0));
  }

  /** The scalar loss pulls the hidden states towards noise that stays the same throughout. */
  async #drawTarget(): Promise<void> {
    const { batch, tokens, seed } = this.options;
    const { store, layout } = this.model;
    const at = Recorder.start(this.engine.device.kind, 'f32');
    const shape = [batch * tokens, layout.config.hiddenSize];
    const target = at.stored({ name: `${PREFIX}in.target`, dtype: 'f32', shape, purpose: 'io' });
    // A stream that no parameter has.
    randomNormal(seed, layout.parameters.length, 1, target, at);
    await runOnce(this.engine, store, lower(at.finish('target')));
  }
}
