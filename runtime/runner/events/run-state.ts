/** Everything known about a run, as a function of its events: the screen and the report are drawn from it. */
import type { Json, RunEvent } from './event.js';

export interface StepPoint {
  readonly step: number;
  readonly loss: number | null;
  readonly gradNorm: number | null;
  readonly lr: number | null;
  readonly tokensPerSecond: number | null;
}

export interface EvalPoint {
  readonly step: number;
  readonly loss: number | null;
}

export interface AnswerPoint {
  readonly prompt: string;
  readonly text: string;
}

export type StageStatus = 'waiting' | 'running' | 'done' | 'failed' | 'interrupted';

export interface StageState {
  readonly id: string;
  readonly uses: string;
  status: StageStatus;
  seconds: number;
  outputs: Readonly<Record<string, Json>>;
  /** By step: a resumed run writes the steps after its checkpoint a second time. */
  readonly steps: Map<number, StepPoint>;
  readonly evals: Map<number, EvalPoint>;
  totalSteps: number | null;
  answers: AnswerPoint[];
  /** The answer that is being made. */
  partial: AnswerPoint | null;
  progress: { done: number; total: number; label: string } | null;
  lastCheckpoint: { step: number; path: string } | null;
  startedAt: number | null;
  /** The last step of this process: rates and ETA do not count what was before a resume. */
  lastStep: { step: number; t: number } | null;
  /** Seconds per step, smoothed. */
  secondsPerStep: number | null;
}

export interface PlannedBytes {
  readonly id: string;
  readonly summary: string;
  readonly bytes: Readonly<Record<string, number>>;
  readonly transient: Readonly<Record<string, number>>;
}

export interface RunPlan {
  readonly stages: readonly PlannedBytes[];
  readonly peakBytes: number;
  readonly peakStage: string | null;
  readonly freeBytes: number;
  readonly diskBytes: number;
}

export interface MemoryPoint {
  readonly t: number;
  readonly rss: number;
}

export interface RunState {
  name: string;
  file: string;
  hash: string;
  runDirectory: string;
  resumed: boolean;
  /** First start, also when resumed. */
  startedAt: number;
  /** Start of the present process. */
  processStartedAt: number;
  device: Readonly<Record<string, Json | undefined>> | null;
  plan: RunPlan | null;
  stages: StageState[];
  errors: RunEvent[];
  warnings: RunEvent[];
  memory: MemoryPoint[];
  peakRss: number;
}

export const emptyState = (): RunState => ({
  name: '',
  file: '',
  hash: '',
  runDirectory: '',
  resumed: false,
  startedAt: 0,
  processStartedAt: 0,
  device: null,
  plan: null,
  stages: [],
  errors: [],
  warnings: [],
  memory: [],
  peakRss: 0,
});

const newStage = (id: string, uses: string): StageState => ({
  id,
  uses,
  status: 'waiting',
  seconds: 0,
  outputs: {},
  steps: new Map(),
  evals: new Map(),
  totalSteps: null,
  answers: [],
  partial: null,
  progress: null,
  lastCheckpoint: null,
  startedAt: null,
  lastStep: null,
  secondsPerStep: null,
});

const number = (value: Json | undefined): number | null =>
  typeof value === 'number' ? value : typeof value === 'string' && value !== '' ? Number(value) : null;
const text = (value: Json | undefined): string => (typeof value === 'string' ? value : '');
const record = (value: Json | undefined): Readonly<Record<string, Json>> =>
  typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as Record<string, Json>) : {};
const numbers = (value: Json | undefined): Record<string, number> =>
  Object.fromEntries(
    Object.entries(record(value)).filter((entry): entry is [string, number] => typeof entry[1] === 'number'),
  );

/** How quickly the rate follows: about the last ten steps count. */
const SMOOTHING = 0.2;
const MEMORY_POINTS = 2000;

export function reduce(state: RunState, event: RunEvent): void {
  if (event.ev === 'run-start') return runStart(state, event);
  const stage = state.stages.find(({ id }) => id === event['stage']);
  switch (event.ev) {
    case 'device':
      state.device = event;
      return;
    case 'plan':
      state.plan = planOf(event);
      return;
    case 'error':
      state.errors.push(event);
      return;
    case 'warning':
      state.warnings.push(event);
      return;
    case 'memory': {
      const rss = number(event['rss_bytes']) ?? 0;
      state.memory.push({ t: event.t, rss });
      if (state.memory.length > MEMORY_POINTS) state.memory = state.memory.filter((_, i) => i % 2 === 0);
      state.peakRss = Math.max(state.peakRss, number(event['peak_rss_bytes']) ?? rss);
      return;
    }
    default:
      if (stage !== undefined) stageEvent(stage, event);
  }
}

function runStart(state: RunState, event: RunEvent): void {
  state.name = text(event['name']);
  state.file = text(event['file']);
  state.hash = text(event['hash']);
  state.runDirectory = text(event['run_directory']);
  state.resumed = event['resumed'] === true;
  if (state.startedAt === 0) state.startedAt = event.t;
  state.processStartedAt = event.t;
  state.errors = [];
  state.warnings = [];
  const before = new Map(state.stages.map((stage) => [stage.id, stage]));
  const listed = Array.isArray(event['stages']) ? event['stages'] : [];
  state.stages = listed.map((entry) => {
    const { id, uses } = record(entry);
    const fresh = newStage(text(id), text(uses));
    const old = before.get(fresh.id);
    if (old === undefined) return fresh;
    return {
      ...fresh,
      steps: old.steps,
      evals: old.evals,
      totalSteps: old.totalSteps,
      lastCheckpoint: old.lastCheckpoint,
    };
  });
}

function planOf(event: RunEvent): RunPlan {
  const stages = Array.isArray(event['stages']) ? event['stages'] : [];
  return {
    stages: stages.map((entry) => {
      const { id, summary, bytes, transient_bytes } = record(entry);
      return {
        id: text(id),
        summary: text(summary),
        bytes: numbers(bytes),
        transient: numbers(transient_bytes),
      };
    }),
    peakBytes: number(event['peak_bytes']) ?? 0,
    peakStage: text(event['peak_stage']) || null,
    freeBytes: number(event['free_bytes']) ?? 0,
    diskBytes: number(event['disk_bytes']) ?? 0,
  };
}

function stageEvent(stage: StageState, event: RunEvent): void {
  switch (event.ev) {
    case 'stage-start':
      stage.status = 'running';
      stage.startedAt = event.t;
      return;
    case 'stage-end':
      stage.status = text(event['status']) as StageStatus;
      stage.seconds = number(event['seconds']) ?? 0;
      stage.outputs = record(event['outputs']);
      stage.partial = null;
      return;
    case 'progress':
      stage.progress = {
        done: number(event['done']) ?? 0,
        total: number(event['total']) ?? 0,
        label: text(event['label']),
      };
      return;
    case 'step':
      stepEvent(stage, event);
      return;
    case 'eval': {
      const step = number(event['step']) ?? 0;
      stage.evals.set(step, { step, loss: number(event['loss']) });
      return;
    }
    case 'checkpoint':
      stage.lastCheckpoint = { step: number(event['step']) ?? 0, path: text(event['path']) };
      return;
    case 'token': {
      const prompt = text(event['prompt']);
      const before = stage.partial?.prompt === prompt ? stage.partial.text : '';
      stage.partial = { prompt, text: before + text(event['text']) };
      return;
    }
    case 'answer':
      stage.answers.push({ prompt: text(event['prompt']), text: text(event['text']) });
      stage.partial = null;
      return;
    default:
  }
}

function stepEvent(stage: StageState, event: RunEvent): void {
  const step = number(event['step']) ?? 0;
  stage.steps.set(step, {
    step,
    loss: number(event['loss']),
    gradNorm: number(event['grad_norm']),
    lr: number(event['lr']),
    tokensPerSecond: number(event['tokens_per_s']),
  });
  stage.totalSteps = number(event['steps']) ?? stage.totalSteps;
  const last = stage.lastStep;
  if (last !== null && step > last.step) {
    const rate = (event.t - last.t) / 1000 / (step - last.step);
    stage.secondsPerStep =
      stage.secondsPerStep === null ? rate : stage.secondsPerStep + SMOOTHING * (rate - stage.secondsPerStep);
  }
  stage.lastStep = { step, t: event.t };
}

/** Seconds that are left, or null while that is not known. */
export function etaSeconds(stage: StageState, now: number): number | null {
  const { totalSteps, secondsPerStep, lastStep } = stage;
  if (totalSteps === null || secondsPerStep === null || lastStep === null) return null;
  const since = (now - lastStep.t) / 1000;
  return Math.max(0, (totalSteps - lastStep.step) * secondsPerStep - since);
}
