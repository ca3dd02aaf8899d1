/** Transcoding as such: what it refuses, how it ends, and that threads and instruction sets do not show. */
import { appendFileSync, existsSync, readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'uvu';
import * as assert from 'uvu/assert';

import { openEngine } from '../../runtime/engine/engine.js';
import type { FileIndex, TranscodeItem, ScaleSearch } from '../../runtime/engine/types.js';
import { Q4Error } from '../../runtime/errors.js';
import { scratch } from './file-bytes.js';
import { safetensorsFile, rawOf, values, type Raw } from '../stages/tiny-checkpoint.js';

const { files } = openEngine({ device: 'cpu' });
const dir = scratch();

async function refusal(work: Promise<unknown>): Promise<Q4Error> {
  try {
    await work;
  } catch (error) {
    assert.instance(error, Q4Error, String(error));
    return error as Q4Error;
  }
  throw new Error('was accepted');
}

const temporary = (): string[] => readdirSync(dir.path).filter((name) => name.endsWith('.tmp'));

/** Matrices of these shapes, bf16. */
async function source(name: string, ...shapes: [number, number][]): Promise<FileIndex> {
  const tensors = new Map<string, Raw>(
    shapes.map((shape, i) => [
      `m${i}.weight`,
      rawOf(shape, values(shape[0] * shape[1], i + 1, true), 'BF16'),
    ]),
  );
  return files.indexSafetensors(dir.put(name, safetensorsFile(tensors)));
}

const quantise = (index: FileIndex, scales: ScaleSearch = 'amax', group?: string): TranscodeItem[] =>
  index.entries.map((entry) => ({
    ...{ kind: 'quantise', name: entry.name, shape: entry.shape, scales, twoLevel: true },
    source: { plain: { index, entry } },
    group: group ?? entry.name,
  }));

async function made(name: string, items: readonly TranscodeItem[]): Promise<Buffer> {
  const path = join(dir.path, name);
  const result = await files.transcode(path, 'dat', items);
  await result.commit();
  result.dispose();
  return readFileSync(path);
}

test('nothing is in place before the commit, and nothing is left without one', async () => {
  const index = await source('a.safetensors', [32, 64]);
  const path = join(dir.path, 'a.dat');
  const result = await files.transcode(path, 'dat', quantise(index));
  assert.not(existsSync(path));
  assert.is(temporary().length, 1);
  result.dispose();
  assert.equal(temporary(), []);
  assert.not(existsSync(path));
  assert.is((await refusal(result.commit())).code, 'Q4514');
});

test('every instruction set writes the same file, for sizes that do not fill its lanes', async () => {
  const index = await source('b.safetensors', [1, 16], [3, 48], [7, 176], [1, 3200]);
  for (const scales of ['amax', 'four_over_six', 'mse'] as const) {
    const found: Buffer[] = [];
    for (const isa of ['portable', 'avx2', 'avx512']) {
      process.env['Q4RUN_CPU_ISA'] = isa;
      try {
        found.push(await made('b.dat', quantise(index, scales)));
      } catch (error) {
        assert.is((error as Q4Error).code, 'Q4512');
      } finally {
        delete process.env['Q4RUN_CPU_ISA'];
      }
    }
    for (const bytes of found) assert.ok(bytes.equals(found[0]!));
  }
});

test('a group has one amax, and the counts add up', async () => {
  const index = await source('c.safetensors', [512, 512], [64, 512]);
  const path = join(dir.path, 'c.dat');
  const result = await files.transcode(path, 'dat', quantise(index, 'amax', 'together'));
  const [a, b] = result.quantised;
  assert.is(a!.globalScale, b!.globalScale);
  assert.is(a!.elements, 512 * 512);
  assert.ok(a!.zeroCodes > 0 && a!.zeroCodes < a!.elements);
  assert.ok(a!.noise > 0 && a!.noise < 0.05 * a!.signal);
  await result.commit();
  const again = await files.indexDat(path);
  assert.is(again.entries.length, 6);
});

test('cancelling in the middle leaves nothing', async () => {
  const index = await source('d.safetensors', [512, 1024]);
  const stop = new AbortController();
  const path = join(dir.path, 'd.dat');
  // The same matrix many times over, so that it lasts long enough to be interrupted.
  const items = Array.from({ length: 400 }, (_, i) => ({
    ...quantise(index, 'mse')[0]!,
    name: `m${i}.weight`,
  }));
  const seen: number[] = [];
  const error = await refusal(
    files.transcode(path, 'dat', items, {
      signal: stop.signal,
      onProgress: (done, total) => {
        seen.push(done / total);
        stop.abort();
      },
    }),
  );
  assert.is(error.code, 'Q4501');
  assert.ok(seen.length > 0 && seen[0]! < 1, JSON.stringify(seen));
  assert.not(existsSync(path));
  assert.equal(temporary(), []);
});

test('a source that changed, and items that contradict their source', async () => {
  const index = await source('e.safetensors', [16, 64]);
  const entry = index.entries[0]!;
  const plain = { plain: { index, entry } };
  const from = { ...entry, offset: index.fileBytes };
  const outside = await refusal(
    files.transcode(join(dir.path, 'e.dat'), 'dat', [
      { kind: 'convert', name: 'x', type: 'f32', shape: [16, 64], source: { plain: { index, entry: from } } },
    ]),
  );
  assert.is(outside.code, 'Q4227');
  const wrong = await refusal(
    files.transcode(join(dir.path, 'e.dat'), 'dat', [
      { kind: 'convert', name: 'x', type: 'f32', shape: [16, 65], source: plain },
    ]),
  );
  assert.is(wrong.code, 'Q4227');
  const odd = await refusal(
    files.transcode(join(dir.path, 'e.dat'), 'dat', [
      { kind: 'copy', name: 'x', type: 'f32', shape: [16, 64], source: plain.plain, part: 'data' },
    ]),
  );
  assert.is(odd.code, 'Q4227');
  appendFileSync(index.path, 'x');
  const changed = await refusal(files.transcode(join(dir.path, 'e.dat'), 'dat', quantise(index)));
  assert.is(changed.code, 'Q4221');
  assert.equal(temporary(), []);
});

test.after(() => dir.remove());
test.run();
