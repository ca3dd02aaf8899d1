/** A training run of a tiny model from a seed, on token ids, whose every byte can be compared. */
import { createHash } from 'node:crypto';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

import { integers } from '../native/random-values.js';
import { configJson, SMALL } from './golden-case.js';
import { folder, outputsOf } from './q4run.js';

export interface TrainingOptions {
  readonly steps?: number;
  readonly every?: number;
  /** More keys of the train stage, as YAML. */
  readonly train?: string;
  readonly runtime?: string;
  readonly config?: object;
  /** More keys of the build-model stage and of its init, as YAML. */
  readonly build?: string;
  readonly init?: string;
  readonly batch?: number;
  readonly accumulate?: number;
}

const ROWS = 24;
export const TOKENS = 16;

/** ROWS samples of TOKENS ids, some of which do not count. */
export function tokenData(vocabulary: number, rows = ROWS): string {
  const ids = integers(rows * TOKENS, 99, vocabulary);
  const line = (row: number): string => {
    const input_ids = [...ids.subarray(row * TOKENS, (row + 1) * TOKENS)];
    const labels = input_ids.map((id, i) => ((row + i) % 7 === 0 ? -100 : id));
    return JSON.stringify({ input_ids, labels });
  };
  return `${Array.from({ length: rows }, (_, row) => line(row)).join('\n')}\n`;
}

export function pipelineText(options: TrainingOptions = {}): string {
  const { steps = 20, every = 5, train = '', runtime = '{ device: cpu }', build = '', init = '' } = options;
  const { batch = 4, accumulate = 1 } = options;
  return `version: 1
name: tiny
runtime: ${runtime}
stages:
  - { id: model, uses: build-model, with: { init: { config: config.json, seed: 5, std: 0.2${init} }${build} } }
  - id: train
    uses: train
    needs: [model]
    with:
      data: { path: data.jsonl }
      steps: ${steps}
      batch_size: ${batch}
      accumulate: ${accumulate}
      seq_len: ${TOKENS}
      pack: false
      learning_rate: 3.0e-3
      schedule: { kind: cosine, warmup_steps: 3 }
      checkpoint: { every: ${every}, keep_last: 2 }
${train ? `      ${train}\n` : ''}  - { id: save, uses: checkpoint, needs: [train], with: { export: trained.dat } }
`;
}

export function trainingFolder(options: TrainingOptions = {}): string {
  const config = { ...SMALL, ...options.config };
  return folder({
    'p.yaml': pipelineText(options),
    'config.json': configJson(config),
    'data.jsonl': tokenData(config.vocab_size),
  });
}

export const sha256 = (path: string): string => createHash('sha256').update(readFileSync(path)).digest('hex');

/** Everything of a finished run that must not depend on how it went. */
export interface Fingerprint {
  readonly exported: string;
  readonly weights: string;
  readonly optimizer: string;
  readonly losses: readonly number[];
  readonly gradNorms: readonly number[];
  readonly evalLosses: unknown;
}

export function fingerprint(runDirectory: string): Fingerprint {
  const { losses, grad_norms, eval_losses } = outputsOf<{
    losses: number[];
    grad_norms: number[];
    eval_losses: unknown;
  }>(runDirectory, 'train');
  const { path } = outputsOf<{ path: string }>(runDirectory, 'save');
  return {
    exported: sha256(join(runDirectory, 'trained.dat')),
    weights: sha256(join(path, 'weights.dat')),
    optimizer: sha256(join(path, 'optimizer.dat')),
    losses,
    gradNorms: grad_norms,
    evalLosses: eval_losses,
  };
}

/** Files that only a run in progress may have: temporary, half-made, locks. */
export function leftovers(directory: string): string[] {
  if (!existsSync(directory)) return [];
  return readdirSync(directory, { recursive: true, encoding: 'utf8' })
    .filter((path) => /(^|\/)\.|\.tmp$|\.partial$/.test(path))
    .sort();
}
