/**
 * Runs every test/**\/*.test.ts in a process of its own, two at a time, and counts: uvu alone passes a file that forgot
 * `test.run()`, forgives a throwing hook and knows no time-out. The last line, `N passed, N failed[, N skipped]`, is
 * what CI reads.
 *
 *   node --import tsx test/run.ts [--gpu | --faults] [--timeout SECONDS] [--jobs N] [--verbose] [part of a path …]
 *
 * --verbose shows what passing files print as well, with one job as they print it.
 */
import { fork } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { dirname, join, relative, sep } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

import type { FileCounts } from './run-file.js';

const HERE = dirname(fileURLToPath(import.meta.url));
const ROOT = dirname(HERE);
const DEFAULT_TIMEOUT_S = 300;
const DEFAULT_JOBS = 2;

export interface FileOutcome extends FileCounts {
  readonly file: string;
  /** Why the file as a whole failed, beside its tests; null when it did not. */
  readonly broken: string | null;
  readonly output: string;
  readonly seconds: number;
}

/** Leaders of the process groups of files that run now. */
const running = new Set<number>();

/** The whole group: a test may have started processes of its own. */
function killGroup(leader: number): void {
  try {
    process.kill(-leader, 'SIGKILL');
  } catch {
    // All of it has ended already.
  }
}

/**
 * Signals reach this process, but not the groups of the files. Node undoes what nohup did, so SIGHUP is ignored here
 * where nothing is written to a terminal: a run that goes to a log survives the shell that started it.
 */
function heedSignals(): void {
  for (const [signal, number] of [
    ['SIGINT', 2],
    ['SIGTERM', 15],
    ['SIGHUP', 1],
  ] as const)
    process.on(signal, () => {
      if (signal === 'SIGHUP' && !process.stdout.isTTY) return;
      running.forEach(killGroup);
      process.exit(128 + number);
    });
}

/**
 * Runs one test file in a child process; a crash, a time-out, a missing run() and zero tests are failures. `onOutput` gets
 * what it prints at once.
 */
export function runFile(
  file: string,
  timeoutSeconds = DEFAULT_TIMEOUT_S,
  onOutput: (chunk: Buffer) => void = () => {},
): Promise<FileOutcome> {
  return new Promise((resolve) => {
    const started = performance.now();
    const child = fork(join(HERE, 'run-file.ts'), [file], {
      cwd: ROOT,
      execArgv: ['--import', 'tsx'],
      env: { ...process.env, NO_COLOR: '1', FORCE_COLOR: undefined },
      stdio: ['ignore', 'pipe', 'pipe', 'ipc'],
      detached: true,
    });
    const output: Buffer[] = [];
    let counts: FileCounts | null = null;
    let timedOut = false;
    const leader = child.pid;
    if (leader !== undefined) running.add(leader);
    for (const stream of [child.stdout, child.stderr])
      stream?.on('data', (chunk: Buffer) => {
        output.push(chunk);
        onOutput(chunk);
      });
    child.on('message', (message) => (counts = message as FileCounts));
    const timer = setTimeout(() => {
      timedOut = true;
      if (leader !== undefined) killGroup(leader);
    }, timeoutSeconds * 1000);
    child.on('close', (code, signal) => {
      clearTimeout(timer);
      if (leader !== undefined) running.delete(leader);
      let broken: string | null = null;
      if (timedOut) broken = `took longer than ${timeoutSeconds} s`;
      else if (counts === null) broken = `ended before its tests did (${signal ?? `exit code ${code}`})`;
      else if (counts.total === 0 && counts.skipped === 0) broken = 'holds no test, or forgot test.run()';
      else if (code !== 0) broken = `exited with ${signal ?? code} after its tests`;
      resolve({
        file: relative(ROOT, file),
        ...(counts ?? { total: 0, passed: 0, skipped: 0 }),
        broken,
        output: Buffer.concat(output).toString(),
        seconds: (performance.now() - started) / 1000,
      });
    });
  });
}

/** A file that is broken beyond its tests counts as one failure more. */
export const failures = (outcome: FileOutcome): number =>
  outcome.total - outcome.passed + (outcome.broken === null ? 0 : 1);

/** Rooms of tests that run only when they are asked for: they need a GPU, or minutes. */
const APART = ['gpu', 'faults'] as const;
type Room = (typeof APART)[number] | null;

const roomOf = (path: string): Room => APART.find((room) => path.startsWith(`${room}${sep}`)) ?? null;

function testFiles(room: Room, filters: readonly string[]): string[] {
  return readdirSync(HERE, { recursive: true, encoding: 'utf8' })
    .filter((path) => path.endsWith('.test.ts'))
    .filter((path) => roomOf(path) === room)
    .map((path) => join(HERE, path))
    .filter((path) => filters.length === 0 || filters.some((part) => relative(ROOT, path).includes(part)))
    .sort();
}

function report(outcome: FileOutcome, showOutput: boolean): void {
  const failed = failures(outcome);
  const skipped = outcome.skipped > 0 ? `, ${outcome.skipped} skipped` : '';
  const mark = failed > 0 ? 'FAIL' : 'ok  ';
  console.log(
    `${mark} ${outcome.file}  ${outcome.passed}/${outcome.total}${skipped}  ${outcome.seconds.toFixed(1)} s`,
  );
  if (showOutput) console.log(outcome.output.trimEnd());
  if (outcome.broken !== null) console.log(`     ${outcome.file} ${outcome.broken}`);
  else if (failed > 0 && !outcome.output.includes('FAIL')) console.log('     a before or after hook threw');
}

async function main(): Promise<void> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      gpu: { type: 'boolean', default: false },
      faults: { type: 'boolean', default: false },
      verbose: { type: 'boolean', default: false },
      timeout: { type: 'string', default: String(DEFAULT_TIMEOUT_S) },
      jobs: { type: 'string', default: String(DEFAULT_JOBS) },
    },
  });
  const files = testFiles(values.gpu ? 'gpu' : values.faults ? 'faults' : null, positionals);
  const totals = { passed: 0, failed: 0, skipped: 0 };
  const queue = files.values();
  heedSignals();
  const live = values.verbose && values.jobs === '1';
  const lane = async (): Promise<void> => {
    for (const file of queue) {
      const show = (chunk: Buffer): void => void process.stdout.write(chunk);
      const outcome = await runFile(file, Number(values.timeout), live ? show : undefined);
      report(outcome, !live && (values.verbose || failures(outcome) > 0));
      totals.passed += outcome.passed;
      totals.failed += failures(outcome);
      totals.skipped += outcome.skipped;
    }
  };
  await Promise.all(Array.from({ length: Number(values.jobs) }, lane));
  if (files.length === 0) {
    console.log('no test file matches');
    totals.failed += 1;
  }
  process.exitCode = totals.failed > 0 ? 1 : 0;
  const skipped = totals.skipped > 0 ? `, ${totals.skipped} skipped` : '';
  console.log(`\n${totals.passed} passed, ${totals.failed} failed${skipped}`);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await main();
