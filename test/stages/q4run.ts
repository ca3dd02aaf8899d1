/** q4run with its real stages, in this process or as a child, and what a run leaves behind. */
import { spawn, type ChildProcess } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

import { makeColors } from '../../runtime/runner/colors.js';
import type { RunEvent } from '../../runtime/runner/events/event.js';
import { main } from '../../runtime/runner/main.js';
import type { Terminal } from '../../runtime/runner/terminal.js';

export const ROOT = dirname(dirname(dirname(fileURLToPath(import.meta.url))));
const CLI = join(ROOT, 'runtime', 'runner', 'cli.ts');

const folders: string[] = [];
process.on('exit', () => {
  for (const path of folders) rmSync(path, { recursive: true, force: true });
});

/** A folder with these files, removed when the process ends. */
export function folder(files: Readonly<Record<string, string | Uint8Array>> = {}): string {
  const path = mkdtempSync(join(tmpdir(), 'q4run-stages-'));
  folders.push(path);
  put(path, files);
  return path;
}

export function put(path: string, files: Readonly<Record<string, string | Uint8Array>>): void {
  for (const [name, content] of Object.entries(files)) {
    mkdirSync(dirname(join(path, name)), { recursive: true });
    writeFileSync(join(path, name), content);
  }
}

export interface Outcome {
  readonly code: number;
  /** For people. */
  readonly err: string;
  readonly events: readonly RunEvent[];
}

const parseEvents = (out: string): RunEvent[] =>
  out.split('\n').flatMap((line) => (line.startsWith('{') ? [JSON.parse(line) as RunEvent] : []));

/** The command line in this process; its worker is a process of its own. `--json` is added. */
export async function q4run(cwd: string, ...argv: string[]): Promise<Outcome> {
  let out = '';
  let err = '';
  const terminal: Terminal = {
    out: (text) => void (out += text),
    err: (text) => void (err += text),
    interactive: false,
    columns: 100,
    colors: makeColors(false),
    env: {},
    cwd,
  };
  const code = await main([...argv, '--json'], { terminal });
  return { code, err, events: parseEvents(out) };
}

export interface Running {
  readonly child: ChildProcess;
  readonly events: readonly RunEvent[];
  /** Resolves with the first event that fits, and rejects when the run ends without one. */
  until(fits: (event: RunEvent) => boolean): Promise<RunEvent>;
  readonly done: Promise<{ code: number | null; signal: string | null; err: string }>;
}

/** The command line as a child process, for signals. */
export function startQ4run(cwd: string, ...argv: string[]): Running {
  const child = spawn(
    process.execPath,
    ['--import', 'tsx', CLI, ...argv.map((arg) => inside(cwd, arg)), '--json'],
    {
      cwd: ROOT,
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...process.env, NO_COLOR: '1' },
    },
  );
  const events: RunEvent[] = [];
  const waiting = new Set<() => void>();
  let rest = '';
  let err = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    const lines = (rest + text).split('\n');
    rest = lines.pop()!;
    events.push(...parseEvents(lines.join('\n')));
    for (const look of [...waiting]) look();
  });
  child.stderr.setEncoding('utf8').on('data', (text: string) => (err += text));
  const done = new Promise<{ code: number | null; signal: string | null; err: string }>((resolve) => {
    child.on('close', (code, signal) => resolve({ code, signal, err }));
  });
  const until = (fits: (event: RunEvent) => boolean): Promise<RunEvent> =>
    new Promise((resolve, reject) => {
      const look = (): void => {
        const found = events.find(fits);
        if (found === undefined) return;
        waiting.delete(look);
        resolve(found);
      };
      waiting.add(look);
      look();
      void done.then(({ code }) =>
        reject(new Error(`the run ended (exit ${code}) before that event\n${err}`)),
      );
    });
  return { child, events, until, done };
}

/** Files of the folder are named relative to it, but tsx is found from the root only. */
const inside = (cwd: string, argument: string): string =>
  !argument.startsWith('-') && existsSync(join(cwd, argument)) ? join(cwd, argument) : argument;

export interface StageReport {
  readonly id: string;
  readonly uses: string;
  readonly status: string;
  readonly outputs: Readonly<Record<string, unknown>>;
}
export interface Report {
  readonly status: string;
  readonly exit_code: number;
  readonly stages: readonly StageReport[];
}

export const readReport = (runDirectory: string): Report =>
  JSON.parse(readFileSync(join(runDirectory, 'report.json'), 'utf8')) as Report;

/** The outputs of one stage, as the report has them. */
export function outputsOf<T = Record<string, unknown>>(runDirectory: string, id: string): T {
  const stage = readReport(runDirectory).stages.find((candidate) => candidate.id === id);
  if (stage === undefined) throw new Error(`the report has no stage ${id}`);
  return stage.outputs as T;
}

export const errorsIn = (outcome: { readonly events: readonly RunEvent[] }): RunEvent[] =>
  outcome.events.filter(({ ev }) => ev === 'error');
