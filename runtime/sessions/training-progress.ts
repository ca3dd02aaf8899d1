/** How far a training run has come: what the next step depends on beside the tensors, and what its report tells. */
import type { DataCursor } from '../text/batching.js';
import type { DataReport } from '../text/data.js';
import type { Profile } from './profile.js';
import type { StepResult } from './training.js';

/** The meta of a training checkpoint. Plain JSON. */
export interface Progress {
  /** Of the wiring; another one cannot be resumed. */
  readonly fingerprint: string;
  /** Steps done. */
  step: number;
  /** Where the next step's data begin. */
  cursor: DataCursor;
  tokens: number;
  seconds: number;
  /** Steps that were not applied. */
  skipped: number;
  readonly losses: number[];
  readonly grad_norms: number[];
  readonly learning_rates: number[];
  /** Share of the NVFP4 codes that each step changed. */
  readonly changed_shares: number[];
  readonly eval_losses: { step: number; loss: number }[];
}

export const newProgress = (fingerprint: string): Progress => ({
  fingerprint,
  ...{ step: 0, cursor: { epoch: 0, row: 0 }, tokens: 0, seconds: 0, skipped: 0 },
  ...{ losses: [], grad_norms: [], learning_rates: [], changed_shares: [], eval_losses: [] },
});

/** Notes one step that is done. */
export function recordStep(
  progress: Progress,
  result: StepResult,
  step: { lr: number; tokens: number; seconds: number; cursor: DataCursor },
): void {
  progress.step++;
  progress.cursor = step.cursor;
  progress.losses.push(result.loss);
  progress.grad_norms.push(result.gradNorm);
  progress.learning_rates.push(step.lr);
  progress.changed_shares.push(result.changedShare);
  progress.tokens += step.tokens;
  progress.seconds += step.seconds;
  if (!result.applied) progress.skipped++;
}

export interface TrainingOutcome {
  readonly usedBytes: number;
  readonly plannedBytes: number;
  /** Share of the codes that differ from the file's; null when there is none to compare with. */
  readonly changedShare: number | null;
  readonly data: readonly DataReport[];
  readonly profile: Profile | null;
}

/** The train stage's outputs, as report.json has them. */
export function trainingReport(progress: Progress, outcome: TrainingOutcome) {
  const { fingerprint: _, cursor: __, step, skipped, seconds, changed_shares, ...told } = progress;
  const { profile } = outcome;
  return {
    ...told,
    steps: step,
    skipped_steps: skipped,
    final_loss: progress.losses.at(-1) ?? null,
    seconds,
    tokens_per_second: seconds > 0 ? progress.tokens / seconds : 0,
    peak_memory_bytes: outcome.usedBytes,
    planned_memory_bytes: outcome.plannedBytes,
    changed_codes_share: outcome.changedShare,
    changed_codes_share_per_step:
      changed_shares.reduce((a, b) => a + b, 0) / Math.max(1, changed_shares.length),
    data: outcome.data,
    ...(profile && { phases: profile.phases, profile }),
  };
}

/** Not one NVFP4 code moved: a run that looks like success and is none. */
export const nothingMoved = (progress: Progress, changedShare: number | null): boolean =>
  progress.step > 0 && (changedShare ?? progress.changed_shares.reduce((a, b) => a + b, 0)) === 0;
