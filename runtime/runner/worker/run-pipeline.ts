/** Runs the stages of a job, one after the other, and says everything in events. In the worker; tests call it directly. */
import { Q4Error, Q4Errors, toQ4Error } from '../../errors.js';
import type { Engine } from '../../engine/engine.js';
import type { Stage, StageContext, StageText, StageValues } from '../../../stages/index.js';
import type { PipelineStage } from '../config/pipeline.js';
import { transitiveNeeds } from '../config/order.js';
import { errorEvent, type EventBody, type Json } from '../events/event.js';
import { openDevice, type EngineModule } from './device.js';
import { completeParameters, type Parameters } from './parameters.js';
import { freeFor, missingInputs, needsOf, shortages, type PlannedStage } from './preflight.js';
import type { Job } from './protocol.js';
import { makeContext, stoppedError } from './stage-context.js';

export interface Dependencies {
  readonly stages: readonly Stage[];
  readonly engines: EngineModule;
  readonly emit: (event: EventBody) => void;
  readonly signal: AbortSignal;
}

const MIB = 1024 * 1024;

/** Never throws: what went wrong is an `error` event. */
export async function runPipeline(job: Job, dependencies: Dependencies): Promise<void> {
  const run = new PipelineRun(job, dependencies);
  try {
    await run.start();
  } catch (thrown) {
    run.fail(thrown, null);
  } finally {
    run.dispose();
  }
}

class PipelineRun {
  private readonly selected: readonly PipelineStage[];
  private readonly contexts = new Map<string, StageContext>();
  private readonly values = new Map<string, StageValues>();
  private readonly outputs = new Map<string, Readonly<Record<string, Json>>>();
  private engine: Engine | null = null;
  private precision: 'fp32' | 'bf16' = 'fp32';

  constructor(
    private readonly job: Job,
    private readonly deps: Dependencies,
  ) {
    this.selected = job.stages.filter((stage) => job.selected.includes(stage.id));
  }

  async start(): Promise<void> {
    const { job, deps } = this;
    for (const stage of this.selected) this.moduleOf(stage);
    const opened = openDevice(job.runtime, deps.engines);
    this.engine = opened.engine;
    this.precision = opened.precision;
    deps.emit(opened.event);
    for (const stage of this.selected) {
      const parts = { job, engine: opened.engine, engines: deps.engines, precision: opened.precision };
      this.contexts.set(stage.id, makeContext({ ...parts, signal: deps.signal, emit: deps.emit }, stage.id));
    }
    const plans = await this.planAll();
    if (job.mode === 'graph' || job.mode === 'preview') return this.describe(job.mode, plans);
    this.preflight(plans, opened.engine);
    if (job.mode !== 'run') return;
    for (const stage of this.selected) if (!(await this.runStage(stage))) return;
  }

  /** The error is told once, at the stage if it has no better place. */
  fail(thrown: unknown, stage: PipelineStage | null): void {
    const errors = thrown instanceof Q4Errors ? thrown.errors : [toQ4Error(thrown)];
    for (const error of errors) {
      const { at, file } = error.details;
      const below = at !== undefined && stage !== null && at[0] !== 'stages' && at[0] !== 'runtime';
      const place = below
        ? ['stages', stage.index, 'with', ...at]
        : (at ?? (stage === null || file !== undefined ? undefined : ['stages', stage.index]));
      const placed = new Q4Error(error.code, error.message, {
        ...error.details,
        ...(place && { at: place }),
      });
      this.deps.emit(errorEvent(placed, stage?.id));
    }
  }

  dispose(): void {
    const disposed = new Set<unknown>();
    for (const values of [...this.values.values()].reverse()) {
      for (const value of Object.values(values)) {
        const dispose = (value as { dispose?: unknown } | null | undefined)?.dispose;
        if (typeof dispose !== 'function' || disposed.has(value)) continue;
        disposed.add(value);
        try {
          dispose.call(value);
        } catch (thrown) {
          this.fail(thrown, null);
        }
      }
    }
    this.engine?.dispose();
  }

  private moduleOf(stage: PipelineStage): Stage {
    const module = this.deps.stages.find(({ uses }) => uses === stage.uses);
    if (module !== undefined) return module;
    const at = ['stages', stage.index, 'uses'];
    throw new Q4Error('Q4116', `the stage '${stage.uses}' is not in this version of q4run`, { at });
  }

  /** What the stages that this one needs give, by kind; of two that give the same kind, the nearer. */
  private inputsOf(stage: PipelineStage, from: ReadonlyMap<string, StageValues>): StageValues {
    const inputs: Record<string, unknown> = {};
    for (const id of transitiveNeeds(this.job.stages, stage.id)) {
      for (const [kind, value] of Object.entries(from.get(id) ?? {})) {
        if (!Object.hasOwn(inputs, kind)) inputs[kind] = value;
      }
    }
    return inputs;
  }

  private parametersOf(stage: PipelineStage, late: boolean): Promise<Parameters> {
    const { precision, outputs } = this;
    return completeParameters(stage, {
      precision,
      runDirectory: this.job.runDirectory,
      outputs: late ? outputs : null,
    });
  }

  private async planAll(): Promise<PlannedStage[]> {
    const errors: Q4Error[] = [];
    for (const stage of this.selected) {
      errors.push(...(await missingInputs(stage, await this.parametersOf(stage, false))));
    }
    if (errors.length > 0) throw new Q4Errors(errors);
    const plans: PlannedStage[] = [];
    const values = new Map<string, StageValues>();
    // A stage whose settings are known only later cannot be planned, nor can those that build on it.
    const unknown = new Set<string>();
    for (const stage of this.selected) {
      this.stopIfAsked();
      const waits =
        stage.late.length > 0 || transitiveNeeds(this.job.stages, stage.id).some((id) => unknown.has(id));
      if (waits) {
        unknown.add(stage.id);
        const summary = 'known when the stages before it have run';
        plans.push({ id: stage.id, plan: { summary, bytes: {}, values: {} } });
        continue;
      }
      try {
        const module = this.moduleOf(stage);
        const parameters = await this.parametersOf(stage, false);
        const plan = await module.plan(
          parameters,
          this.inputsOf(stage, values),
          this.contexts.get(stage.id)!,
        );
        values.set(stage.id, plan.values);
        plans.push({ id: stage.id, plan });
      } catch (thrown) {
        this.fail(thrown, stage);
        throw new Q4Errors([]);
      }
    }
    this.planned = values;
    return plans;
  }

  private planned: ReadonlyMap<string, StageValues> = new Map();

  private preflight(plans: readonly PlannedStage[], engine: Engine): void {
    const reserve = this.job.runtime.host_reserve_mib * MIB;
    const needs = needsOf(plans);
    this.deps.emit({
      ev: 'plan',
      stages: plans.map(({ id, plan }) => ({
        id,
        uses: this.selected.find((stage) => stage.id === id)!.uses,
        summary: plan.summary,
        bytes: plan.bytes,
        transient_bytes: plan.transientBytes ?? {},
        disk_bytes: plan.diskBytes ?? {},
      })),
      peak_bytes: needs.peakBytes,
      peak_stage: needs.peakStage,
      free_bytes: freeFor(engine.device, reserve),
      disk_bytes: needs.diskBytes,
    });
    const errors = shortages(needs, plans, engine.device, reserve, this.job.runDirectory);
    if (errors.length > 0) throw new Q4Errors(errors);
  }

  /** False when the run ends here. */
  private async runStage(stage: PipelineStage): Promise<boolean> {
    const context = this.contexts.get(stage.id)!;
    const seconds = context.stopwatch();
    this.deps.emit({ ev: 'stage-start', stage: stage.id, uses: stage.uses });
    const end = (status: string, outputs: Readonly<Record<string, Json>> = {}): void =>
      this.deps.emit({ ev: 'stage-end', stage: stage.id, status, seconds: seconds(), outputs });
    try {
      this.stopIfAsked();
      const parameters = await this.parametersOf(stage, true);
      const missing = await missingInputs(stage, parameters);
      if (missing.length > 0) throw new Q4Errors(missing);
      const result = await this.moduleOf(stage).run(parameters, this.inputsOf(stage, this.values), context);
      this.values.set(stage.id, result.values);
      this.outputs.set(stage.id, result.outputs);
      end(result.failure === undefined ? 'done' : 'failed', result.outputs);
      if (result.failure !== undefined) this.fail(result.failure, stage);
      return result.failure === undefined;
    } catch (thrown) {
      // A program that the abort ended says Q4501; what happened is that the user stopped the run.
      const cancelled = this.deps.signal.aborted && toQ4Error(thrown).code === 'Q4501';
      const error = cancelled ? stoppedError(this.deps.signal) : thrown;
      const stopped = ['Q4703', 'Q4704', 'Q4705'].includes(toQ4Error(error).code);
      end(stopped ? 'interrupted' : 'failed');
      this.fail(error, stage);
      return false;
    }
  }

  private stopIfAsked(): void {
    if (this.deps.signal.aborted) throw stoppedError(this.deps.signal);
  }

  private async describe(mode: 'graph' | 'preview', plans: readonly PlannedStage[]): Promise<void> {
    let told = 0;
    for (const stage of this.selected) {
      if (this.job.only !== null && stage.id !== this.job.only) continue;
      const module = this.moduleOf(stage);
      if (!plans.some(({ id }) => id === stage.id)) continue;
      const hook = mode === 'graph' ? module.describe?.bind(module) : module.preview?.bind(module);
      if (hook === undefined) continue;
      const parameters = await this.parametersOf(stage, false);
      const inputs = this.inputsOf(stage, this.planned);
      const texts: readonly StageText[] = await hook(
        parameters,
        inputs,
        this.contexts.get(stage.id)!,
        this.job.samples,
      );
      for (const { title, text, data } of texts) {
        told += 1;
        this.deps.emit({ ev: 'text', stage: stage.id, title, text, ...(data !== undefined && { data }) });
      }
    }
    if (told > 0) return;
    const which = this.job.only === null ? 'no stage of this pipeline' : `the stage '${this.job.only}'`;
    const what = mode === 'graph' ? 'runs programs' : 'reads training data';
    throw new Q4Error('Q4002', `${which} ${what}`);
  }
}
