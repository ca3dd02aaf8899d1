/**
 * The op tests under compute-sanitizer: every suite of q4gpu_test under memcheck and under racecheck, in small sizes, each
 * in a process and with a time limit of its own. Fails on any report of the sanitizer, not only on wrong results.
 *
 *   npm run test:sanitize [-- [suite …] [--tool memcheck]… [--jobs N] [--timeout SECONDS]]
 */
import { spawn } from 'node:child_process';
import { parseArgs } from 'node:util';

import { opTestBinary, suitesOf } from './op-tests.js';

const TOOLS = ['memcheck', 'racecheck'] as const;
/**
 * Kernels that racecheck looks at, by a part of their mangled names: ours. It takes the copies and barriers of cuBLASLt's
 * for races.
 */
const OURS = 'kns=q43gpu';
/** compute-sanitizer's own exit code for a report, apart from those of the tests. */
const REPORTED = 99;
/** The last line of memcheck, and that of racecheck, when there is nothing to report. */
const CLEAN = /ERROR SUMMARY: 0 errors|RACECHECK SUMMARY: 0 hazards displayed \(0 errors, 0 warnings\)/;

interface Outcome {
  readonly problem: string | null;
  readonly output: string;
  readonly seconds: number;
}

function sanitized(tool: string, binary: string, suite: string, timeoutSeconds: number): Promise<Outcome> {
  return new Promise((resolve) => {
    const began = performance.now();
    const options = ['--tool', tool, '--error-exitcode', String(REPORTED), '--print-limit', '20'];
    if (tool === 'racecheck') options.push('--kernel-name', OURS);
    const child = spawn('compute-sanitizer', [...options, binary, '--small', '--only', suite], {
      stdio: ['ignore', 'pipe', 'pipe'],
      // The sanitizer and the program that it runs end together.
      detached: true,
    });
    let output = '';
    for (const stream of [child.stdout, child.stderr])
      stream.setEncoding('utf8').on('data', (text: string) => (output += text));
    let timedOut = false;
    const timer = setTimeout(() => {
      timedOut = true;
      if (child.pid !== undefined) process.kill(-child.pid, 'SIGKILL');
    }, timeoutSeconds * 1000);
    const end = (problem: string | null): void => {
      clearTimeout(timer);
      resolve({ problem, output, seconds: (performance.now() - began) / 1000 });
    };
    child.on('error', (error) => end(`compute-sanitizer does not start: ${error.message}`));
    child.on('close', (code, signal) => {
      if (timedOut) end(`took longer than ${timeoutSeconds} s`);
      else if (code === REPORTED) end('has reports');
      else if (code !== 0) end(`failed (${signal ?? `exit ${code}`})`);
      else end(CLEAN.test(output) ? null : 'ended without a summary');
    });
  });
}

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    tool: { type: 'string', multiple: true, default: [...TOOLS] },
    jobs: { type: 'string', default: '4' },
    timeout: { type: 'string', default: '600' },
  },
});
const binary = opTestBinary();
const suites = suitesOf(binary);
const unknown = positionals.filter((name) => !suites.includes(name));
if (unknown.length > 0) throw new Error(`no suite ${unknown.join(', ')}; there are ${suites.join(', ')}`);

// The racecheck runs first: they are the long ones.
const wanted = (positionals.length > 0 ? positionals : suites).flatMap((suite) =>
  values.tool.map((tool) => ({ suite, tool })),
);
wanted.sort((a, b) => b.tool.localeCompare(a.tool));
const queue = wanted.values();
let [clean, failed] = [0, 0];
const lane = async (): Promise<void> => {
  for (const { suite, tool } of queue) {
    const { problem, output, seconds } = await sanitized(tool, binary, suite, Number(values.timeout));
    console.log(`${problem === null ? 'ok  ' : 'FAIL'} ${tool} ${suite}  ${seconds.toFixed(1)} s`);
    if (problem === null) clean++;
    else {
      failed++;
      console.log(`     ${problem}\n${output.split('\n').slice(-80).join('\n').trimEnd()}`);
    }
  }
};
await Promise.all(Array.from({ length: Number(values.jobs) }, lane));
process.exitCode = failed > 0 ? 1 : 0;
console.log(`\n${clean} clean, ${failed} failed`);
