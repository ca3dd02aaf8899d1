/** StageContext: the only door through which a stage has effects. */
import { Q4Error } from '../../errors.js';
import type { Engine } from '../../engine/engine.js';
import type { StageContext, StageEvent } from '../../../stages/index.js';
import type { EventBody } from '../events/event.js';
import { StageCheckpoints } from './checkpoints.js';
import type { EngineModule } from './device.js';
import type { Job, StopReason } from './protocol.js';
import { stageFiles } from './stage-files.js';

export interface ContextParts {
  readonly job: Job;
  readonly engine: Engine;
  readonly engines: EngineModule;
  readonly precision: 'fp32' | 'bf16';
  readonly signal: AbortSignal;
  readonly emit: (event: EventBody) => void;
}

const STOPPED: Readonly<Record<StopReason, readonly ['Q4704' | 'Q4705' | 'Q4703', string]>> = {
  interrupt: ['Q4704', 'interrupted'],
  terminate: ['Q4705', 'terminated'],
  memory: ['Q4703', 'stopped by the memory guard: the machine is running out of memory'],
};

/** The error that ends a run which was asked to stop. */
export function stoppedError(signal: AbortSignal, detail?: string): Q4Error {
  const [code, message] = STOPPED[(signal.reason as StopReason | undefined) ?? 'interrupt'];
  const text = detail === undefined ? message : `${message}: ${detail}`;
  return new Q4Error(code, text, { hint: 'the same command continues' });
}

export function makeContext(parts: ContextParts, id: string): StageContext {
  const { job, engine, engines, precision, signal } = parts;
  const emit = (event: StageEvent): void => parts.emit({ ...event, stage: id });
  const checkpoints = new StageCheckpoints(job.runDirectory, id, emit);
  return {
    id,
    seed: job.runtime.seed,
    precision,
    engine,
    openEngine: ({ device, reference }) =>
      engines.openEngine({
        device,
        threads: job.runtime.threads,
        ...(device === engine.device.kind && { index: engine.device.index }),
        ...(reference !== undefined && { reference }),
      }),
    files: stageFiles,
    checkpoints,
    runDirectory: job.runDirectory,
    signal,
    interrupted: (detail) => stoppedError(signal, detail),
    profile: job.profile,
    emit,
    stopwatch: () => {
      const started = performance.now();
      return () => (performance.now() - started) / 1000;
    },
  };
}
