/** The test runner itself: what uvu forgives, it must not. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
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

test.run();
