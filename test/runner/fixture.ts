/** Temporary folders with pipeline files, and the command line run in this process. */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

import type { Q4Error } from '../../runtime/errors.js';
import { makeColors } from '../../runtime/runner/colors.js';
import { errorsOf } from '../../runtime/runner/error-text.js';
import { main } from '../../runtime/runner/main.js';
import type { RunEvent } from '../../runtime/runner/events/event.js';
import type { Terminal } from '../../runtime/runner/terminal.js';

export const FAKE_CLI = fileURLToPath(new URL('./fake-cli.ts', import.meta.url));
export const FAKE_REGISTRY = fileURLToPath(new URL('./fake-registry.ts', import.meta.url));

const folders: string[] = [];

/** A folder with these files, removed when the process ends. */
export function folder(files: Readonly<Record<string, string>> = {}): string {
  const path = mkdtempSync(join(tmpdir(), 'q4run-test-'));
  folders.push(path);
  for (const [name, text] of Object.entries(files)) {
    mkdirSync(dirname(join(path, name)), { recursive: true });
    writeFileSync(join(path, name), text);
  }
  return path;
}

process.on('exit', () => {
  for (const path of folders) rmSync(path, { recursive: true, force: true });
});

/** The example of the interface, with its input files. */
export const EXAMPLE = `version: 1
name: example
vars:
  model: assets
stages:
  - id: weights
    uses: load-dat
    with: { weights: "\${vars.model}/model.dat", config: "\${vars.model}/config.json" }
  - id: model
    uses: build-model
    needs: [weights]
  - id: train
    uses: train
    needs: [model]
    with:
      data: { path: assets/data.jsonl }
      steps: 12
      batch_size: 8
      learning_rate: 1.0e-3
      schedule: { kind: cosine, warmup_steps: 2 }
      checkpoint: { every: 3 }
  - { id: save, uses: checkpoint, needs: [train], with: { export: trained.dat } }
  - { id: gate, uses: parity-check, needs: [save], with: { baseline: { route: replay } } }
  - { id: ask, uses: infer, needs: [gate], with: { prompts: ["Who are you?"] } }
`;

export const EXAMPLE_FILES: Readonly<Record<string, string>> = {
  'p.yaml': EXAMPLE,
  'assets/model.dat': 'weights',
  'assets/config.json': '{}',
  'assets/data.jsonl': '{}\n',
};

export interface Outcome {
  readonly code: number;
  readonly out: string;
  readonly err: string;
  readonly events: readonly RunEvent[];
}

/** Runs a command line with fake stages; `--json` output is parsed. */
export async function q4run(
  cwd: string,
  argv: readonly string[],
  env: NodeJS.ProcessEnv = {},
): Promise<Outcome> {
  let out = '';
  let err = '';
  const terminal: Terminal = {
    out: (text) => void (out += text),
    err: (text) => void (err += text),
    interactive: false,
    columns: 100,
    colors: makeColors(false),
    env,
    cwd,
  };
  const code = await main(argv, { terminal, registry: FAKE_REGISTRY });
  const events = argv.includes('--json')
    ? out.split('\n').flatMap((line) => (line.startsWith('{"v"') ? [JSON.parse(line) as RunEvent] : []))
    : [];
  return { code, out, err, events };
}

/** What `action` throws, as errors; fails the test when it throws nothing. */
export function thrownBy(action: () => unknown): readonly Q4Error[] {
  try {
    action();
  } catch (error) {
    return errorsOf(error);
  }
  throw new Error('nothing was thrown');
}
