/**
 * What a stage is and what it may use. Stages are pure modules: everything with an effect comes through the context,
 * so a stage touches no file system, clock, process or random source of its own.
 */
import type { Engine } from '../runtime/engine/types.js';
import type { Q4Error } from '../runtime/errors.js';

/** JSON, as it stands in report.json. */
export type Json = null | boolean | number | string | readonly Json[] | { readonly [key: string]: Json };

/** Files, by absolute path (the runner resolves paths of the YAML against the file that they stand in). */
export interface StageFiles {
  exists(path: string): Promise<boolean>;
  /** UTF-8, strictly; refuses files over `maxBytes` (default 256 MiB) before reading them. */
  readText(path: string, maxBytes?: number): Promise<string>;
  /** Lines without terminators, streamed; for data files of any size. */
  readLines(path: string): AsyncIterable<string>;
  /** Written aside, fsynced, renamed; makes parent directories. */
  writeText(path: string, text: string): Promise<void>;
  copy(from: string, to: string): Promise<void>;
  bytes(path: string): Promise<number>;
  sha256(path: string): Promise<string>;
  join(...parts: string[]): string;
}

export interface CheckpointRef {
  readonly path: string;
  readonly step: number;
  /** What the writer gave as `meta`. */
  readonly meta: Json;
}

/** The committed checkpoints of one stage, in the run directory. A directory without a valid manifest does not exist. */
export interface Checkpoints {
  /** The newest whose manifest and checksums hold; damaged ones are reported and passed over. */
  latest(): Promise<CheckpointRef | null>;
  list(): Promise<readonly CheckpointRef[]>;
  /**
   * `write` fills a temporary directory; then every file is fsynced, the manifest with a SHA-256 per file is written
   * last, and the directory is renamed to `step-<step>`. Afterwards old ones are removed: the last `keepLast` and the
   * best `keepBest` by falling `score` (lower is better) stay, and any `pinned`.
   */
  commit(
    step: number,
    meta: Json,
    write: (directory: string) => Promise<void>,
    keep: { keepLast: number; keepBest?: number; score?: number; pinned?: boolean },
  ): Promise<CheckpointRef>;
}

/** One event; the runner adds `v`, `t` and `stage`. `ev` and the fields are listed in schemas/events.schema.json. */
export interface StageEvent {
  readonly ev: string;
  readonly [field: string]: Json;
}

export interface StageContext {
  /** The stage's id in the pipeline. */
  readonly id: string;
  /** runtime.seed */
  readonly seed: number;
  /** Resolved: activations and gradients. */
  readonly precision: 'fp32' | 'bf16';
  readonly engine: Engine;
  /** Opens another engine (parity against another device or the reference path); the caller disposes it. */
  openEngine(options: { device: 'cpu' | 'cuda'; reference?: boolean }): Engine;
  readonly files: StageFiles;
  readonly checkpoints: Checkpoints;
  /** The run directory; outputs go below it. */
  readonly runDirectory: string;
  /** Aborts on the first Ctrl-C or SIGTERM: save, then throw `interrupted()`. */
  readonly signal: AbortSignal;
  /** The error to throw once everything is saved after `signal` aborted (exit 130 or 143). */
  interrupted(detail?: string): Error;
  /** True when the user asked for --profile. */
  readonly profile: boolean;
  emit(event: StageEvent): void;
  /** Starts a stopwatch; call it for the seconds since. */
  stopwatch(): () => number;
}

/** Values that stages hand on, by kind: `weights`, `model`, `checkpoint`, `metrics`. Opaque to the runner. */
export type StageValues = Readonly<Record<string, unknown>>;

export interface StageResult {
  /** Handed on to stages that need this one; `dispose()` is called on values that have it when the run ends. */
  readonly values: StageValues;
  /** Goes into report.json under `outputs`; also what ${stages.ID.outputs.NAME} reads. */
  readonly outputs: { readonly [key: string]: Json };
  /**
   * The stage did its work and the answer is no: a gate's verdict (Q46xx), divergence (Q48xx). The outputs are
   * reported, no later stage runs and the run ends with this error's exit code.
   */
  readonly failure?: Q4Error;
}

/** What a stage would do and need: printed by `q4run plan`, checked before the run starts. */
export interface StagePlan {
  /** One line for people. */
  readonly summary: string;
  /** Device bytes by purpose that the stage takes and that stay until the run ends, e.g. { weights, masters }. */
  readonly bytes: Readonly<Record<string, number>>;
  /** Device bytes by purpose that are given back when the stage ends, e.g. { activations, gradients, kv_cache }. */
  readonly transientBytes?: Readonly<Record<string, number>>;
  /** Bytes the stage leaves on disk at most at one time, by purpose: { checkpoints, export }. */
  readonly diskBytes?: Readonly<Record<string, number>>;
  /** Values for later stages' plans, by the same kinds as `StageResult.values`. */
  readonly values: StageValues;
}

export interface Stage<P = unknown> {
  /** As written in `uses:`. Its parameters' schema is schemas/stages/<uses>.schema.json. */
  readonly uses: string;
  /** Kinds it needs, at least one of each inner list, e.g. [['model', 'checkpoint']]. */
  readonly takes: readonly (readonly string[])[];
  /** Kinds that it uses when there are any. */
  readonly mayTake?: readonly string[];
  readonly gives: readonly string[];
  /** `params` are complete (defaults filled in by the schema) and frozen. */
  plan(params: P, inputs: StageValues, ctx: StageContext): Promise<StagePlan>;
  run(params: P, inputs: StageValues, ctx: StageContext): Promise<StageResult>;
  /** `q4run graph`: the programs it would run, as text. `inputs` are the values of plans. */
  describe?(params: P, inputs: StageValues, ctx: StageContext): Promise<readonly StageText[]>;
  /** `q4run preview`: its data as the model will see them. `inputs` are the values of plans. */
  preview?(params: P, inputs: StageValues, ctx: StageContext, samples: number): Promise<readonly StageText[]>;
}

/** A titled piece of text for people, and the same for machines (`--json`). */
export interface StageText {
  readonly title: string;
  readonly text: string;
  readonly data?: Json;
}
