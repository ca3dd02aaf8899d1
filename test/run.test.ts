/** The test runner itself: what uvu forgives, it must not. */
import { spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { test } from 'uvu';
import * as assert from 'uvu/assert';

import { failures, runFile } from './run.js';

const folder = mkdtempSync(fileURLToPath(new URL('./run-test-', import.meta.url)));
test.after(() => rmSync(folder, { recursive: true }));

let count = 0;
const outcome = (body: string, timeout = 60) => {
  const file = join(folder, `case-${count++}.ts`);
  writeFileSync(file, `import { test } from 'uvu';\nimport * as assert from 'uvu/assert';\n${body}\n`);
  return runFile(file, timeout);
};

test('counts passes, failures and skips', async () => {
  const result = await outcome(
    `test('a', () => {}); test('b', () => assert.is(1, 2)); test.skip('c', () => {}); test.run();`,
  );
  assert.is(result.passed, 1);
  assert.is(failures(result), 1);
  assert.is(result.skipped, 1);
  assert.match(result.output, /FAIL/);
});

test('passes a file whose tests pass', async () => {
  assert.is(failures(await outcome(`test('a', () => assert.ok(true)); test.run();`)), 0);
});

test('fails a file that forgot run()', async () => {
  assert.is(failures(await outcome(`test('a', () => {});`)), 1);
});

test('fails a file without tests', async () => {
  assert.is(failures(await outcome(`test.run();`)), 1);
});

test('fails when a before hook throws', async () => {
  const result = await outcome(
    `test.before(() => { throw new Error('no') }); test('a', () => {}); test.run();`,
  );
  assert.is(failures(result), 1);
});

test('fails when an after hook throws', async () => {
  const result = await outcome(
    `test.after(() => { throw new Error('no') }); test('a', () => {}); test.run();`,
  );
  assert.ok(failures(result) > 0);
});

test('fails a file that cannot be loaded, ends itself or never ends', async () => {
  assert.is(failures(await outcome(`throw new Error('at load')`)), 1);
  assert.is(failures(await outcome(`test('a', () => process.exit(0)); test.run();`)), 1);
  assert.is(failures(await outcome(`test('a', () => new Promise(() => {})); test.run();`)), 1);
  const hung = await outcome(`test('a', () => new Promise((r) => setTimeout(r, 60000))); test.run();`, 3);
  assert.match(hung.broken ?? '', /longer than 3 s/);
});

const isAlive = (pid: number): boolean => {
  try {
    process.kill(pid, 0);
    // A zombie has ended; whoever adopted it has just not asked yet.
    return !/\) [ZX] /.test(readFileSync(`/proc/${pid}/stat`, 'utf8'));
  } catch {
    return false;
  }
};

async function until(what: string, holds: () => boolean): Promise<void> {
  const deadline = Date.now() + 30_000;
  while (!holds()) {
    assert.ok(Date.now() < deadline, `never: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** run.ts itself, on a file whose test started a process of its own and waits until a file `go` stands beside it. */
async function started(): Promise<{
  child: ReturnType<typeof spawn>;
  ended: Promise<number | string | null>;
  /** Of the test file and of the process that it started. */
  pids: readonly number[];
  go: () => void;
  said: () => string;
}> {
  const name = `case-${count++}`;
  const [pidFile, goFile] = [join(folder, `${name}.pids`), join(folder, `${name}.go`)];
  writeFileSync(
    join(folder, `${name}.test.ts`),
    `import { spawn } from 'node:child_process';
import { existsSync, renameSync, writeFileSync } from 'node:fs';
import { test } from 'uvu';
test('waits', async () => {
  const other = spawn('sleep', ['600'], { stdio: 'ignore' });
  writeFileSync('${pidFile}.new', JSON.stringify([process.pid, other.pid]));
  renameSync('${pidFile}.new', '${pidFile}');
  while (!existsSync('${goFile}')) await new Promise((r) => setTimeout(r, 20));
  other.kill();
});
test.run();
`,
  );
  const runner = fileURLToPath(new URL('./run.ts', import.meta.url));
  const filter = `${basename(folder)}/${name}.test`;
  const child = spawn(process.execPath, ['--import', 'tsx', runner, '--verbose', '--jobs', '1', filter], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  let said = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => (said += text));
  const ended = new Promise<number | string | null>((resolve) =>
    child.on('close', (code, signal) => resolve(signal ?? code)),
  );
  await until('the test runs', () => existsSync(pidFile));
  const pids = JSON.parse(readFileSync(pidFile, 'utf8')) as number[];
  return { child, ended, pids, go: () => writeFileSync(goFile, ''), said: () => said };
}

test('a runner that writes to a log survives the end of its terminal', async () => {
  const { child, ended, pids, go, said } = await started();
  child.kill('SIGHUP');
  await new Promise((resolve) => setTimeout(resolve, 200));
  go();
  assert.is(await ended, 0);
  assert.match(said(), /1 passed, 0 failed\n$/);
  assert.not.ok(pids.some(isAlive));
});

for (const [signal, end] of [
  ['SIGINT', 130],
  ['SIGTERM', 143],
  ['SIGKILL', 'SIGKILL'],
] as const)
  test(`a runner that ends by ${signal} takes the tests and their processes along`, async () => {
    const { child, ended, pids } = await started();
    assert.ok(pids.every(isAlive));
    child.kill(signal);
    assert.is(await ended, end);
    await until('all have ended', () => !pids.some(isAlive));
  });

test.run();
