/** The `.dat` parser: every refusal with its code and place, the valid corners, the golden file. */
import { execFileSync } from 'node:child_process';
import { closeSync, ftruncateSync, mkdirSync, openSync, readFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { openEngine } from '../../runtime/engine/engine.js';
import { Q4Error } from '../../runtime/errors.js';
import { dat, E2M1X2, E4M3, entry, leb, quantised, scratch, TYPE } from './file-bytes.js';
import { DAT_REFUSALS } from './refusals.js';

const engine = openEngine({ device: 'cpu', threads: 1 });
const { files } = engine;
const dir = scratch();
const golden = fileURLToPath(new URL('../fixtures/d.dat', import.meta.url));

async function refusal(path: string): Promise<Q4Error> {
  try {
    await files.indexDat(path);
  } catch (error) {
    assert.instance(error, Q4Error);
    return error as Q4Error;
  }
  throw new Error(`${path} was accepted`);
}

for (const { what, bytes, code, offset, entry: name } of DAT_REFUSALS) {
  test(`refuses ${what}`, async () => {
    const error = await refusal(dir.put('bad.dat', bytes));
    assert.is(error.code, code, error.message);
    assert.is(error.exit, 4);
    assert.is(error.details.file, join(dir.path, 'bad.dat'));
    if (offset !== undefined) assert.is(error.details.offset, offset, error.message);
    if (name !== undefined) assert.is(error.details.entry, name);
    assert.ok(error.details.found, 'says what was found');
    assert.ok(error.details.expected, 'says what was expected');
    assert.ok(!/[\x00-\x1f\x7f-\x9f]/.test(error.message), 'the message holds no raw bytes of the file');
  });
}

test('every refusal that needs no config has a code of its own', () => {
  const codes = new Set(DAT_REFUSALS.map(({ code }) => code));
  for (const n of [3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 22])
    assert.ok(codes.has(`Q42${String(n).padStart(2, '0')}`), `Q42${n}`);
});

test('refuses the golden file cut at every place', async () => {
  // Small, so that every cut is tried: headers, payloads, and between entries.
  const whole = dat(...quantised('m.w', 2, 32), { name: 'n', type: TYPE.f16, shape: [3], payload: 6 });
  for (let length = 0; length < whole.length; ++length) {
    const error = await refusal(dir.put('cut.dat', whole.subarray(0, length)));
    assert.ok(['Q4203', 'Q4207', 'Q4210'].includes(error.code), `${length}: ${error.code}`);
  }
  assert.is((await files.indexDat(dir.put('whole.dat', whole))).entries.length, 4);
});

test('refuses what is no regular file, without waiting for it', async () => {
  const fifo = join(dir.path, 'fifo');
  execFileSync('mkfifo', [fifo]);
  mkdirSync(join(dir.path, 'folder'));
  for (const path of [fifo, join(dir.path, 'folder'), '/dev/zero']) {
    const error = await refusal(path);
    assert.is(error.code, 'Q4202', path);
    assert.ok(error.details.hint);
  }
});

test('a missing file and an impossible name are told apart from damaged ones', async () => {
  const missing = await refusal(join(dir.path, 'nowhere.dat'));
  assert.is(missing.code, 'Q4201');
  assert.match(missing.details.found ?? '', 'No such file');
  assert.is((await refusal('a\0b')).code, 'Q4201');
  assert.is((await refusal('')).code, 'Q4201');
});

test('accepts no entries, rank 0, zero dims, rank 8 and long names', async () => {
  assert.equal((await files.indexDat(dir.put('none.dat', dat()))).entries, []);
  const long = `${'n'.repeat(1023)}é`.slice(1); // 1,024 bytes
  const index = await files.indexDat(
    dir.put(
      'corners.dat',
      dat(
        { name: 'scalar', type: TYPE.f64, shape: [], payload: 8 },
        { name: 'empty', type: TYPE.f32, shape: [0, (1n << 53n) - 1n] },
        { name: 'deep', type: TYPE.bool, shape: [1, 1, 1, 1, 1, 1, 1, 2], payload: 2 },
        { name: long, type: TYPE.i16, shape: [1], payload: 2 },
        { name: '層.重み', type: TYPE.bf16, shape: [1], payload: 2 },
      ),
    ),
  );
  assert.equal(
    index.entries.map(({ name, type, shape, bytes }) => [name, type, [...shape], bytes]),
    [
      ['scalar', 'f64', [], 8],
      ['empty', 'f32', [0, 2 ** 53 - 1], 0],
      ['deep', 'bool', [1, 1, 1, 1, 1, 1, 1, 2], 2],
      [long, 'i16', [1], 2],
      ['層.重み', 'bf16', [1], 2],
    ],
  );
});

test('accepts both spellings of quantised tensors, with and without a global scale', async () => {
  const packed = quantised('b', 2, 16, false).map((p) => (p.type === TYPE.u8 ? { ...p, type: E2M1X2 } : p));
  const index = await files.indexDat(
    dir.put('pairs.dat', dat(...quantised('a.weight', 2, 16), ...packed.reverse())),
  );
  assert.equal(
    index.entries.map((e) => `${e.name} ${e.type}`),
    [
      'a.weight.qdata u8',
      'a.weight.scale e4m3',
      'a.weight.global_scale f32',
      'b.scale e4m3',
      'b.qdata e2m1x2',
    ],
  );
  const empty = [
    { name: 'e.qdata', type: TYPE.u8, shape: [0, 8] },
    { name: 'e.scale', type: E4M3, shape: [0, 1] },
  ];
  assert.is((await files.indexDat(dir.put('empty.dat', dat(...empty)))).entries.length, 2);
});

test('indexes a tensor of 5 GiB and what follows it, without reading it', async () => {
  const path = join(dir.path, 'sparse.dat');
  const bytes = 5 * 2 ** 30;
  const head = Buffer.concat([leb(2), entry({ name: 'big', type: TYPE.u8, shape: [bytes / 1024, 1024] })]);
  const tail = entry({ name: 'after', type: TYPE.i32, shape: [1], payload: 4 });
  const fd = openSync(path, 'w');
  try {
    writeSync(fd, head);
    writeSync(fd, tail, 0, tail.length, head.length + bytes);
    const index = await files.indexDat(path);
    assert.equal(
      index.entries.map(({ name, offset, bytes: n }) => [name, offset, n]),
      [
        ['big', head.length, bytes],
        ['after', head.length + bytes + tail.length - 4, 4],
      ],
    );
    assert.is(index.fileBytes, head.length + bytes + tail.length);
    ftruncateSync(fd, head.length + bytes - 1);
    assert.is((await refusal(path)).code, 'Q4210');
  } finally {
    closeSync(fd);
  }
});

test('indexes the golden file', async () => {
  const index = await files.indexDat(golden);
  assert.is(index.entries.length, 105);
  assert.is(index.fileBytes, readFileSync(golden).length);
  // Embedding, 4 layers × 7 projections × 3 parts with 4 norms each, the last norm, the head's 3 parts.
  assert.is(index.entries.filter((e) => e.name.endsWith('.global_scale')).length, 29);
  let end = 1;
  for (const e of index.entries) {
    assert.ok(e.offset > end && e.offset - end < 100, e.name);
    end = e.offset + e.bytes;
  }
  assert.is(end, index.fileBytes);
  assert.throws(() => (index.entries[0]!.shape as number[]).push(1), 'the index is frozen');
});

test.after(() => {
  engine.dispose();
  dir.remove();
});

test.run();
