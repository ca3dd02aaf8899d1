/** Runs a pipeline's stages in this process, with engines of the test's choice and no worker between. */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';

import { openEngine, probe, type EngineOptions } from '../../runtime/engine/engine.js';
import { loadPipeline } from '../../runtime/runner/config/pipeline.js';
import type { EventBody } from '../../runtime/runner/events/event.js';
import { runPipeline } from '../../runtime/runner/worker/run-pipeline.js';
import { STAGES } from '../../stages/index.js';

export interface HereOptions {
  readonly engine?: Partial<EngineOptions>;
  readonly signal?: AbortSignal;
  readonly sets?: readonly string[];
  /** Sees every event as it happens. */
  readonly onEvent?: (event: EventBody) => void;
}

export interface Here {
  readonly events: readonly EventBody[];
  readonly errors: readonly EventBody[];
  /** 0 without an error, as the supervisor would end. */
  readonly exit: number;
  outputs<T = Record<string, unknown>>(id: string): T;
}

/** `file` in `cwd`; the run directory is `cwd/<run>`. */
export async function runHere(
  cwd: string,
  file: string,
  run = 'run',
  options: HereOptions = {},
): Promise<Here> {
  const pipeline = loadPipeline(join(cwd, file), { env: {}, sets: options.sets ?? [], cwd });
  const runDirectory = join(cwd, run);
  mkdirSync(runDirectory, { recursive: true });
  const events: EventBody[] = [];
  await runPipeline(
    {
      mode: 'run',
      name: pipeline.name,
      runtime: pipeline.runtime,
      stages: pipeline.stages,
      selected: pipeline.stages.map(({ id }) => id),
      runDirectory,
      profile: false,
      registry: '',
      only: null,
      samples: 0,
      target: '',
    },
    {
      stages: STAGES,
      engines: { openEngine: (asked) => openEngine({ ...asked, ...options.engine }), probe },
      emit: (event) => {
        events.push(event);
        options.onEvent?.(event);
      },
      signal: options.signal ?? new AbortController().signal,
    },
  );
  const errors = events.filter(({ ev }) => ev === 'error');
  return {
    events,
    errors,
    exit: Number(errors[0]?.['exit'] ?? 0),
    outputs: <T>(id: string): T => {
      const end = events.find(({ ev, stage }) => ev === 'stage-end' && stage === id);
      if (end === undefined) throw new Error(`stage ${id} did not end: ${JSON.stringify(errors)}`);
      return end['outputs'] as T;
    },
  };
}
