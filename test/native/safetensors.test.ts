/** The safetensors parser: refusals with code and place, valid corners, the golden file. */
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { openEngine } from '../../runtime/engine/engine.js';
import { Q4Error } from '../../runtime/errors.js';
import { safetensors, scratch } from './file-bytes.js';
import { SAFETENSORS_REFUSALS } from './refusals.js';

const engine = openEngine({ device: 'cpu', threads: 1 });
const { files } = engine;
const dir = scratch();

for (const { what, bytes, code, offset, entry } of SAFETENSORS_REFUSALS) {
  test(`refuses ${what}`, async () => {
    const path = dir.put('bad.safetensors', bytes);
    try {
      await files.indexSafetensors(path);
    } catch (thrown) {
      assert.instance(thrown, Q4Error);
      const error = thrown as Q4Error;
      assert.is(error.code, code, error.message);
      assert.is(error.exit, 4);
      assert.is(error.details.file, path);
      if (offset !== undefined) assert.is(error.details.offset, offset, error.message);
      if (entry !== undefined) assert.is(error.details.entry, entry);
      assert.ok(error.details.expected && error.details.found, 'says what was expected and found');
      return;
    }
    assert.unreachable('was accepted');
  });
}

test('accepts an empty header, padding, metadata, escapes and every order', async () => {
  assert.equal((await files.indexSafetensors(dir.put('none', safetensors('{}')))).entries, []);
  const header =
    '{"b":{"data_offsets":[8,10],"shape":[2],"dtype":"U8"},\n"__metadata__":{"format":"pt","a\\"\\u00e9\\ud83d\\ude00":"\\n","__proto__":"x"},' +
    '"a":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},"e":{"dtype":"BF16","shape":[0],"data_offsets":[8,8]},' +
    '"s":{"dtype":"I64","shape":[],"data_offsets":[10,18]}}   ';
  const index = await files.indexSafetensors(dir.put('some', safetensors(header, 18)));
  const at = 8 + Buffer.byteLength(header);
  assert.equal(
    index.entries.map(({ name, type, shape, offset, bytes }) => [name, type, [...shape], offset - at, bytes]),
    [
      ['b', 'u8', [2], 8, 2],
      ['a', 'f32', [1, 2], 0, 8],
      ['e', 'bf16', [0], 8, 0],
      ['s', 'i64', [], 10, 8],
    ],
  );
  assert.equal(Object.entries(index.metadata).sort(), [
    ['__proto__', 'x'],
    ['a"é😀', '\n'],
    ['format', 'pt'],
  ]);
  assert.is(index.metadata['toString'], undefined);
});

test('knows every element type', async () => {
  const types = ['F64', 'I64', 'F32', 'I32', 'F16', 'BF16', 'I16', 'I8', 'U8', 'BOOL', 'F8_E4M3'];
  const sizes = [8, 8, 4, 4, 2, 2, 2, 1, 1, 1, 1];
  const header: Record<string, object> = {};
  let end = 0;
  types.forEach((dtype, i) => {
    header[dtype] = { dtype, shape: [3], data_offsets: [end, end + 3 * sizes[i]!] };
    end += 3 * sizes[i]!;
  });
  const index = await files.indexSafetensors(dir.put('types', safetensors(header, end)));
  assert.equal(
    index.entries.map((e) => e.type),
    ['f64', 'i64', 'f32', 'i32', 'f16', 'bf16', 'i16', 'i8', 'u8', 'bool', 'e4m3'],
  );
});

test('reads the golden file', async () => {
  const golden = await files.indexSafetensors(
    fileURLToPath(new URL('../fixtures/d.golden.safetensors', import.meta.url)),
  );
  const ids = await files.readEntry(golden, 'input_ids');
  assert.instance(ids, BigInt64Array);
  assert.is(ids.length, 96);
  assert.ok((ids as BigInt64Array).every((id) => id >= 0n && id < 640n));
  const logits = await files.readEntry(golden, 'logits');
  assert.instance(logits, Float32Array);
  assert.is(logits.length, 2 * 48 * 640);
  // The greedy continuation's first token is what the logits at the end of its prompt say, where that is a row of them.
  const greedy = (await files.readEntry(golden, 'greedy')) as BigInt64Array;
  const row = [...(ids as BigInt64Array).slice(0, 16)].every((id, i) => id === greedy[i]) ? 15 : -1;
  assert.is(row, 15);
  const values = (logits as Float32Array).subarray(row * 640, (row + 1) * 640);
  assert.is(values.indexOf(Math.max(...values)), Number(greedy[16]));
  try {
    await files.readEntry(golden, 'nothing');
    assert.unreachable();
  } catch (error) {
    assert.is((error as Q4Error).code, 'Q4228');
  }
});

test('a missing file says so', async () => {
  try {
    await files.indexSafetensors(join(dir.path, 'nowhere'));
    assert.unreachable();
  } catch (error) {
    assert.is((error as Q4Error).code, 'Q4201');
  }
});

test.after(() => {
  engine.dispose();
  dir.remove();
});

test.run();
