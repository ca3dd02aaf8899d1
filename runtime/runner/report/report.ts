/** report.json, as a function of the events. Its schema is schemas/report.schema.json. */
import { arch, cpus, platform, totalmem } from 'node:os';

import type { Json, RunEvent } from '../events/event.js';
import type { RunState, StageState } from '../events/run-state.js';

export type RunStatus =
  'done' | 'refused' | 'failed' | 'gate' | 'crashed' | 'memory' | 'diverged' | 'interrupted' | 'bug';

const STATUS_OF_EXIT: Readonly<Record<number, RunStatus>> = {
  0: 'done',
  1: 'bug',
  3: 'refused',
  4: 'refused',
  6: 'gate',
  7: 'crashed',
  8: 'memory',
  9: 'diverged',
  130: 'interrupted',
  143: 'interrupted',
};

export const statusOf = (exit: number): RunStatus => STATUS_OF_EXIT[exit] ?? 'failed';

export interface Report {
  readonly version: 1;
  readonly q4run: string;
  readonly name: string;
  readonly status: RunStatus;
  readonly exit_code: number;
  readonly file: string;
  readonly run_directory: string;
  readonly hash: string;
  readonly resumed: boolean;
  /** ISO 8601, UTC. */
  readonly started: string;
  readonly seconds: number;
  readonly host: Readonly<Record<string, Json>>;
  readonly plan: Json;
  readonly memory: Readonly<Record<string, Json>>;
  readonly stages: readonly StageReport[];
  readonly errors: readonly Readonly<Record<string, Json>>[];
  readonly warnings: readonly string[];
}

export interface StageReport {
  readonly id: string;
  readonly uses: string;
  readonly status: string;
  readonly seconds: number;
  readonly outputs: Readonly<Record<string, Json>>;
}

function errorOf(event: RunEvent): Readonly<Record<string, Json>> {
  const keys = [
    'code',
    'message',
    'stage',
    'file',
    'line',
    'col',
    'offset',
    'entry',
    'expected',
    'found',
    'hint',
  ];
  const pairs = keys.flatMap((key): [string, Json][] => {
    const value = event[key];
    return value === undefined ? [] : [[key, value]];
  });
  return Object.fromEntries(pairs);
}

/** A stage that ended early has no outputs of its own: what its events told is kept. */
function outputsOf(stage: StageState): Readonly<Record<string, Json>> {
  if (Object.keys(stage.outputs).length > 0 || stage.steps.size === 0) return stage.outputs;
  const steps = [...stage.steps.values()].sort((a, b) => a.step - b.step);
  return {
    steps: steps.at(-1)!.step,
    losses: steps.map(({ loss }) => loss),
    grad_norms: steps.map(({ gradNorm }) => gradNorm),
  };
}

export function makeReport(state: RunState, exit: number, version: string, now: number): Report {
  const processors = cpus();
  const device = { ...(state.device ?? {}) } as Record<string, Json | undefined>;
  for (const key of ['v', 't', 'ev']) Reflect.deleteProperty(device, key);
  return {
    version: 1,
    q4run: version,
    name: state.name,
    status: statusOf(exit),
    exit_code: exit,
    file: state.file,
    run_directory: state.runDirectory,
    hash: state.hash,
    resumed: state.resumed,
    started: new Date(state.startedAt).toISOString(),
    seconds: Math.max(0, (now - state.processStartedAt) / 1000),
    host: {
      platform: platform(),
      arch: arch(),
      node: process.version,
      cpu: processors[0]?.model ?? '',
      cores: processors.length,
      memory_bytes: totalmem(),
      device: state.device === null ? null : (device as Record<string, Json>),
    },
    plan:
      state.plan === null
        ? null
        : {
            peak_bytes: state.plan.peakBytes,
            peak_stage: state.plan.peakStage,
            disk_bytes: state.plan.diskBytes,
            stages: state.plan.stages.map(({ id, summary, bytes, transient }) => ({
              id,
              summary,
              bytes,
              transient_bytes: transient,
            })),
          },
    memory: { peak_rss_bytes: state.peakRss },
    stages: state.stages.map((stage) => ({
      id: stage.id,
      uses: stage.uses,
      status: stage.status,
      seconds: stage.seconds,
      outputs: outputsOf(stage),
    })),
    errors: state.errors.map(errorOf),
    warnings: state.warnings.map((event) => String(event['message'])),
  };
}
