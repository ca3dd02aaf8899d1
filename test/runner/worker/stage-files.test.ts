import { chmodSync, mkdirSync, readFileSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'uvu';
import * as assert from 'uvu/assert';

import { stageFiles } from '../../../runtime/runner/worker/stage-files.js';
import { toQ4Error } from '../../../runtime/errors.js';
import { folder } from '../fixture.js';

const codeOf = async (action: Promise<unknown>): Promise<string> => {
  try {
    await action;
  } catch (error) {
    return toQ4Error(error).code;
  }
  return 'none';
};

const linesOf = async (path: string): Promise<string[]> => {
  const lines: string[] = [];
  for await (const line of stageFiles.readLines(path)) lines.push(line);
  return lines;
};

test('lines: any ending, a byte-order mark, characters across chunks', async () => {
  const long = '誰'.repeat(200_000);
  const home = folder({ a: 'one\r\ntwo\n\nlast', b: '\uFEFFx\n', c: `${long}\n${long}`, empty: '' });
  assert.equal(await linesOf(join(home, 'a')), ['one', 'two', '', 'last']);
  assert.equal(await linesOf(join(home, 'b')), ['x']);
  assert.equal(await linesOf(join(home, 'c')), [long, long]);
  assert.equal(await linesOf(join(home, 'empty')), []);
});

test('what is not UTF-8, too large, missing or a directory is refused', async () => {
  const home = folder({ big: 'x'.repeat(1000) });
  writeFileSync(join(home, 'latin'), Buffer.from([0x61, 0x0a, 0xff, 0x0a]));
  mkdirSync(join(home, 'directory'));
  assert.is(await codeOf(stageFiles.readText(join(home, 'latin'))), 'Q4411');
  assert.is(await codeOf(linesOf(join(home, 'latin'))), 'Q4411');
  assert.is(await codeOf(stageFiles.readText(join(home, 'big'), 999)), 'Q4411');
  assert.is(await codeOf(stageFiles.readText(join(home, 'none'))), 'Q4411');
  assert.is(await codeOf(linesOf(join(home, 'none'))), 'Q4411');
  assert.is(await codeOf(stageFiles.readText(join(home, 'directory'))), 'Q4411');
  assert.is(await codeOf(stageFiles.bytes(join(home, 'none'))), 'Q4411');
});

test('written whole, with parents; nothing is left aside', async () => {
  const home = folder();
  await stageFiles.writeText(join(home, 'a/b/c.txt'), 'text');
  await stageFiles.copy(join(home, 'a/b/c.txt'), join(home, 'd/e.txt'));
  assert.is(readFileSync(join(home, 'd/e.txt'), 'utf8'), 'text');
  assert.equal(readdirSync(join(home, 'a/b')), ['c.txt']);
  assert.is(
    await stageFiles.sha256(join(home, 'd/e.txt')),
    '982d9e3eb996f559e633f4d194def3761d909f5a3b647d1a851fead67c32c9d1',
  );
  assert.is(await codeOf(stageFiles.writeText(join(home, 'd/e.txt/x'), '')), 'Q4413');
  assert.is(await codeOf(stageFiles.copy(join(home, 'none'), join(home, 'x'))), 'Q4411');
  chmodSync(home, 0o755);
});

test.run();
