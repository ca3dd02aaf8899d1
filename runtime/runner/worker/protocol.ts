/** What supervisor and worker say to each other, over Node's IPC channel. */
import type { PipelineStage, RuntimeSettings } from '../config/pipeline.js';

export type Mode = 'run' | 'dry-run' | 'plan' | 'graph' | 'preview' | 'probe' | 'inspect';

export interface Job {
  readonly mode: Mode;
  readonly name: string;
  readonly runtime: RuntimeSettings;
  /** All of the pipeline, in run order. */
  readonly stages: readonly PipelineStage[];
  /** Ids of those that run, in run order, needs included. */
  readonly selected: readonly string[];
  /** Absolute. */
  readonly runDirectory: string;
  readonly profile: boolean;
  /** Module that exports STAGES; empty for ours. */
  readonly registry: string;
  /** graph and preview: only this stage. */
  readonly only: string | null;
  readonly samples: number;
  /** inspect: the file. */
  readonly target: string;
  /** inspect: what it is compared with; empty for nothing. */
  readonly other?: string;
}

export type StopReason = 'interrupt' | 'terminate' | 'memory';

export type ToWorker =
  { readonly type: 'job'; readonly job: Job } | { readonly type: 'stop'; readonly reason: StopReason };

export type FromWorker =
  /** One event as it will stand in events.jsonl, without the line break. */
  | { readonly type: 'event'; readonly line: string }
  /** The job is over; its errors were events. */
  | { readonly type: 'end' };
