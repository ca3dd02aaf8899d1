/**
 * The op tests under compute-sanitizer: every suite of q4gpu_test under memcheck and under racecheck, in small sizes, each
 * in a process and with a time limit of its own. Fails on any report (but see sanitizer-reports.ts), not only on wrong
 * results.
 *
 *   npm run test:sanitize [-- [suite …] [--tool memcheck]… [--jobs N] [--timeout SECONDS] [--verbose]]
 */
import { spawn } from 'node:child_process';
import { parseArgs } from 'node:util';

import { opTestBinaryWithLines, suitesOf } from './op-tests.js';
import { problemsIn, racesIn, type Tool } from './sanitizer-reports.js';

const TOOLS: readonly Tool[] = ['racecheck', 'memcheck'];
/** Last lines of what a failed one printed. */
const SHOWN = 40;

interface Outcome {
  readonly problems: readonly string[];
  readonly output: string;
  readonly seconds: number;
}

/** Of what a suite printed: where it was when it was stopped. */
const lastCheckIn = (output: string): string =>
  output
    .split('\n')
    .findLast((line) => /^(ok|FAIL) /.test(line))
    ?.trim() ?? 'none';

/** Without the checks that passed. */
const reportsIn = (output: string): string[] =>
  output
    .trimEnd()
    .split('\n')
    .filter((line) => !line.startsWith('ok '));

function sanitized(tool: Tool, binary: string, suite: string, timeoutSeconds: number): Promise<Outcome> {
  return new Promise((resolve) => {
    const began = performance.now();
    const options = ['--tool', tool, '--print-limit', '100000'];
    const child = spawn('compute-sanitizer', [...options, binary, '--small', '--verbose', '--only', suite], {
      stdio: ['ignore', 'pipe', 'pipe'],
      // The sanitizer and the program that it runs end together.
      detached: true,
    });
    const chunks: string[] = [];
    for (const stream of [child.stdout, child.stderr])
      stream.setEncoding('utf8').on('data', (text: string) => chunks.push(text));
    let timedOut = false;
    const timer = setTimeout(() => {
      timedOut = true;
      if (child.pid !== undefined) process.kill(-child.pid, 'SIGKILL');
    }, timeoutSeconds * 1000);
    const end = (problem: (output: string) => readonly string[]): void => {
      clearTimeout(timer);
      const output = chunks.join('');
      resolve({ problems: problem(output), output, seconds: (performance.now() - began) / 1000 });
    };
    child.on('error', (error) => end(() => [`compute-sanitizer does not start: ${error.message}`]));
    child.on('close', (code) =>
      end((output) =>
        timedOut
          ? [
              `took longer than ${timeoutSeconds} s, the last check: ${lastCheckIn(output)}`,
              ...(tool === 'racecheck' ? racesIn(output) : []),
            ]
          : problemsIn(tool, output, code),
      ),
    );
  });
}

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    tool: { type: 'string', multiple: true, default: [...TOOLS] },
    jobs: { type: 'string', default: '4' },
    timeout: { type: 'string', default: '600' },
    verbose: { type: 'boolean', default: false },
  },
});
const tools = TOOLS.filter((tool) => values.tool.includes(tool));
const binary = opTestBinaryWithLines();
const suites = suitesOf(binary);
const unknown = positionals.filter((name) => !suites.includes(name));
if (unknown.length > 0) throw new Error(`no suite ${unknown.join(', ')}; there are ${suites.join(', ')}`);

const wanted = positionals.length > 0 ? positionals : suites;
const queue = tools.flatMap((tool) => wanted.map((suite) => ({ tool, suite }))).values();
let [clean, failed] = [0, 0];
const lane = async (): Promise<void> => {
  for (const { suite, tool } of queue) {
    const { problems, output, seconds } = await sanitized(tool, binary, suite, Number(values.timeout));
    const ok = problems.length === 0;
    console.log(`${ok ? 'ok  ' : 'FAIL'} ${tool} ${suite}  ${seconds.toFixed(1)} s`);
    for (const problem of problems) console.log(`     ${problem}`);
    if (!ok || values.verbose) console.log(reportsIn(output).slice(-SHOWN).join('\n'));
    if (ok) clean++;
    else failed++;
  }
};
await Promise.all(Array.from({ length: Number(values.jobs) }, lane));
process.exitCode = failed > 0 ? 1 : 0;
console.log(`\n${clean} clean, ${failed} failed`);
