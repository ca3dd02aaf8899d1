/** Loading entries into device memory: values, conversions, refusals while streaming, changing files, cancelling. */
import { appendFileSync, closeSync, ftruncateSync, openSync, truncateSync, utimesSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { openEngine } from '../../runtime/engine/engine.js';
import type {
  FileIndex,
  LoadItem,
  LoadOptions,
  LoadResult,
  NumericArray,
} from '../../runtime/engine/types.js';
import { Q4Error } from '../../runtime/errors.js';
import type { DType } from '../../runtime/program.js';
import { whileRunning } from '../engine/programs.js';
import { dat, E4M3, quantised, safetensors, scratch, TYPE, type Piece } from './file-bytes.js';

const engine = openEngine({ device: 'cpu' });
const { files } = engine;
const dir = scratch();
const golden = fileURLToPath(new URL('../fixtures/d.dat', import.meta.url));

async function refusal(work: Promise<unknown>): Promise<Q4Error> {
  try {
    await work;
  } catch (error) {
    assert.instance(error, Q4Error, String(error));
    return error as Q4Error;
  }
  throw new Error('was accepted');
}

const bytesOf = (array: NumericArray | Float64Array): Buffer =>
  Buffer.from(array.buffer, array.byteOffset, array.byteLength);

/** Loads one entry of a file into one tensor and gives its elements. */
async function loadOne(
  piece: Omit<Piece, 'name'>,
  dtype: DType,
  options: LoadOptions = {},
): Promise<{ values: NumericArray; result: LoadResult }> {
  const index = await files.indexDat(dir.put('one.dat', dat({ name: 'x', ...piece })));
  const store = engine.createStore();
  try {
    store.allocate('t', dtype, piece.shape.map(Number));
    const result = await files.load(store, index, [{ entry: 'x', tensor: 't', part: 'data' }], options);
    return { values: store.read('t'), result };
  } finally {
    store.dispose();
  }
}

/** f16 bits → value, from the definition. */
function half(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const mantissa = bits & 1023;
  if (exponent === 31) return mantissa ? NaN : sign * Infinity;
  return sign * (exponent === 0 ? mantissa * 2 ** -24 : (1024 + mantissa) * 2 ** (exponent - 25));
}
const bfloat = (bits: number): number => new Float32Array(Uint32Array.of(bits * 65536).buffer)[0]!;

/** The nearest of all 2^16 values, ties to the even bits: an oracle that shares nothing with the code. */
function nearest(value: number, decode: (bits: number) => number): number {
  const negative = value < 0 || Object.is(value, -0);
  let low = 0;
  let high = decode === half ? 0x7c00 : 0x7f80;
  const magnitude = Math.abs(value);
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (decode(middle) <= magnitude) low = middle;
    else high = middle;
  }
  // Infinity stands for the value after the largest.
  const top = decode(high) === Infinity ? 2 * decode(low) - decode(low - 1) : decode(high);
  const up = top - magnitude;
  const down = magnitude - decode(low);
  const bits = up < down || (up === down && low % 2 === 1) ? high : low;
  return bits + (negative ? 0x8000 : 0);
}

test('every f16 and bf16 becomes the f32 of its definition', async () => {
  const bits = Uint16Array.from({ length: 65536 }, (_, i) => i);
  for (const [type, decode] of [
    [TYPE.f16, half],
    [TYPE.bf16, bfloat],
  ] as const) {
    const { values } = await loadOne({ type, shape: [65536], payload: bytesOf(bits) }, 'f32', {
      allowNonFinite: true,
    });
    const wrong = bits.findIndex((b) => !Object.is((values as Float32Array)[b], decode(b)));
    assert.is(wrong, -1, `bits ${wrong}`);
  }
});

test('f32 and f64 round once, to nearest, ties to even', async () => {
  const values: number[] = [
    0,
    -0,
    1,
    -1,
    65504,
    65519.99,
    -65504,
    2 ** -24,
    2 ** -25,
    2 ** -25 * 1.0000001,
    2 ** -14,
  ];
  // Ties, and values just beside them that a first rounding to f32 would turn into ties.
  for (const bits of [0, 1, 2, 0x3c00, 0x3c01, 0x3bff, 0x03ff, 0x0400, 0x7bfe])
    for (const side of [0, 2 ** -40, -(2 ** -40)])
      values.push(((half(bits) + half(bits + 1)) / 2) * (1 + side));
  for (const bits of [0x3f80, 0x3f81, 0x0080, 0x4280])
    for (const side of [0, 2 ** -40, -(2 ** -40)])
      values.push(((bfloat(bits) + bfloat(bits + 1)) / 2) * (1 + side));
  let seed = 1;
  for (let i = 0; i < 5000; ++i) {
    seed = (seed * 48271) % 2147483647;
    values.push((seed / 2147483647 - 0.5) * 2 ** ((i % 40) - 26));
  }
  for (const [type, list] of [
    [TYPE.f32, Float32Array.from(values)],
    [TYPE.f64, Float64Array.from(values)],
  ] as const)
    for (const [dtype, decode] of [
      ['f16', half],
      ['bf16', bfloat],
    ] as const) {
      const got = (await loadOne({ type, shape: [list.length], payload: bytesOf(list) }, dtype)).values;
      const want = Uint16Array.from(list, (value) => nearest(value, decode));
      const wrong = got.findIndex((bits, i) => bits !== want[i]);
      assert.is(wrong, -1, `${list[wrong]} → ${dtype}: ${got[wrong]}, not ${want[wrong]}`);
    }
});

test('whole numbers widen, and i64 must fit i32', async () => {
  const i64 = bytesOf(BigInt64Array.of(-(2n ** 31n), 2n ** 31n - 1n, 7n));
  assert.equal(
    (await loadOne({ type: TYPE.i64, shape: [3], payload: i64 }, 'i32')).values,
    Int32Array.of(-(2 ** 31), 2 ** 31 - 1, 7),
  );
  const i16 = bytesOf(Int16Array.of(-5, 300));
  assert.equal(
    (await loadOne({ type: TYPE.i16, shape: [2], payload: i16 }, 'i32')).values,
    Int32Array.of(-5, 300),
  );
  const wide = bytesOf(BigInt64Array.of(1n, 2n ** 31n));
  const error = await refusal(loadOne({ type: TYPE.i64, shape: [2], payload: wide }, 'i32'));
  assert.is(error.code, 'Q4226');
  assert.is(error.details.offset, 6 + 8);
});

test('what does not fit the type or the shape is refused', async () => {
  const tooLarge = bytesOf(Float32Array.of(1, 65520));
  const overflow = await refusal(loadOne({ type: TYPE.f32, shape: [2], payload: tooLarge }, 'f16'));
  assert.is(overflow.code, 'Q4226');
  assert.is(overflow.details.entry, 'x');
  assert.is(overflow.details.offset, 6 + 4);
  const mixed = await refusal(loadOne({ type: TYPE.i32, shape: [2], payload: 8 }, 'f32'));
  assert.is(mixed.code, 'Q4225');
  const store = engine.createStore();
  store.allocate('t', 'f32', [3]);
  store.allocate('m', 'nvfp4', [2, 16]);
  const index = await files.indexDat(
    dir.put('two.dat', dat({ name: 'x', type: TYPE.f32, shape: [2], payload: 8 }, ...quantised('m', 4, 16))),
  );
  const load = (...items: LoadItem[]): Promise<LoadResult> => files.load(store, index, items);
  assert.is((await refusal(load({ entry: 'x', tensor: 't', part: 'data' }))).code, 'Q4224');
  assert.is((await refusal(load({ entry: 'm.qdata', tensor: 'm', part: 'qdata' }))).code, 'Q4224');
  assert.is((await refusal(load({ entry: 'm.scale', tensor: 'm', part: 'data' }))).code, 'Q4227');
  assert.is((await refusal(load({ entry: 'y', tensor: 't', part: 'data' }))).code, 'Q4228');
  assert.is((await refusal(load({ entry: 'x', tensor: 'nothing', part: 'data' }))).code, 'Q4511');
  store.dispose();
  assert.is((await refusal(load({ entry: 'x', tensor: 't', part: 'data' }))).code, 'Q4514');
});

test('a weight that is not finite is refused with entry, element and offset, wherever it stands', async () => {
  const n = 700_000; // more than one piece
  for (const [type, bits, size] of [
    [TYPE.f16, [0x00, 0x7c], 2],
    [TYPE.bf16, [0x81, 0xff], 2],
    [TYPE.f32, [0, 0, 0xc0, 0x7f], 4],
    [TYPE.f64, [0, 0, 0, 0, 0, 0, 0xf0, 0xff], 8],
  ] as const)
    for (const at of [0, 4095, 300_001, n - 1]) {
      const payload = Buffer.alloc(n * size);
      payload.set(bits, at * size);
      payload.set(bits, (n - 1) * size); // the first one counts
      const error = await refusal(loadOne({ type, shape: [n], payload }, 'f32'));
      assert.is(error.code, 'Q4220');
      assert.is(error.details.offset, 5 + 3 + at * size);
      assert.match(error.details.found ?? '', `element ${at}`);
    }
  const one = { type: TYPE.f32, shape: [1], payload: bytesOf(Float32Array.of(Infinity)) };
  assert.equal((await loadOne(one, 'f16', { allowNonFinite: true })).values, Uint16Array.of(0x7c00));
});

test('bad scales are refused, scales at the floor are counted', async () => {
  const rows = 512;
  const store = engine.createStore();
  const attempt = async (scales: Buffer, global: number): Promise<LoadResult> => {
    const pieces = quantised('m.weight', rows, 32) as [Piece, Piece, Piece];
    pieces[1].payload = scales;
    pieces[2].payload = bytesOf(Float32Array.of(global));
    const index = await files.indexDat(dir.put('scales.dat', dat(...pieces)));
    if (store.has('m')) store.free('m');
    store.allocate('m', 'nvfp4', [rows, 32]);
    const parts = ['qdata', 'scale', 'global_scale'] as const;
    return files.load(
      store,
      index,
      parts.map((part) => ({ entry: `m.weight.${part}`, tensor: 'm', part })),
    );
  };
  const scales = Buffer.alloc(rows * 2, 0x38);
  scales.fill(0x08, 100, 177);
  scales[5] = 0;
  scales[6] = 0x7e;
  const result = await attempt(scales, 0.25);
  assert.is(result.scaleBlocks, rows * 2);
  assert.is(result.floorBlocks, 77);
  assert.is(result.bytes, rows * 16 + rows * 2 + 4);
  assert.equal(store.read('m', 'scale'), new Uint8Array(scales));
  assert.equal(store.read('m', 'global_scale'), Float32Array.of(0.25));
  for (const [byte, found] of [
    [0x7f, 'NaN'],
    [0xff, 'NaN'],
    [0x80, '-0'],
    [0xb8, '-1'],
  ] as const) {
    const bad = Buffer.from(scales);
    bad[901] = byte;
    const error = await refusal(attempt(bad, 1));
    assert.is(error.code, 'Q4219');
    assert.is(error.details.entry, 'm.weight.scale');
    assert.match(error.details.found ?? '', `${found} at element 901`);
  }
  for (const global of [NaN, Infinity, -1]) {
    const error = await refusal(attempt(scales, global));
    assert.is(error.code, 'Q4219');
    assert.is(error.details.entry, 'm.weight.global_scale');
  }
  store.dispose();
});

test('the golden file loads as it stands, plain tensors as f32 too', async () => {
  const index = await files.indexDat(golden);
  const store = engine.createStore();
  const items: LoadItem[] = [];
  for (const { name, shape } of index.entries) {
    const part = (['qdata', 'scale', 'global_scale'] as const).find((p) => name.endsWith(`.${p}`)) ?? 'data';
    const tensor = part === 'data' ? name : name.slice(0, -part.length - 1);
    if (part === 'data') store.allocate(tensor, 'f32', shape);
    else if (part === 'qdata') store.allocate(tensor, 'nvfp4', [shape[0]!, shape[1]! * 2]);
    items.push({ entry: name, tensor, part });
  }
  const told: [number, number][] = [];
  const result = await files.load(store, index, items, { onProgress: (...bytes) => told.push(bytes) });
  assert.equal(told.at(-1), [result.bytes, result.bytes]);
  assert.is(
    result.bytes,
    index.entries.reduce((sum, e) => sum + e.bytes, 0),
  );
  assert.ok(result.scaleBlocks > 0 && result.seconds > 0);
  for (const { entry, tensor, part } of items) {
    const stands = await files.readEntry(index, entry);
    const loaded = store.read(tensor, part);
    if (part === 'data')
      assert.ok(
        (stands as Uint16Array).every((bits, i) => half(bits) === loaded[i]),
        entry,
      );
    else assert.ok(bytesOf(stands).equals(bytesOf(loaded)), entry);
  }
  store.dispose();
});

test('an entry is read as the array of its type', async () => {
  const pieces: [number, NumericArray][] = [
    [TYPE.u8, Uint8Array.of(1, 255)],
    [TYPE.i8, Int8Array.of(-1, 2)],
    [TYPE.bool, Uint8Array.of(0, 1)],
    [E4M3, Uint8Array.of(0x38, 0x7f)],
    [TYPE.i16, Int16Array.of(-2, 3)],
    [TYPE.i32, Int32Array.of(-3, 4)],
    [TYPE.i64, BigInt64Array.of(-4n, 2n ** 62n)],
    [TYPE.f16, Uint16Array.of(0x3c00, 0x7e00)],
    [TYPE.bf16, Uint16Array.of(0x3f80, 0)],
    [TYPE.f32, Float32Array.of(1.5, -0)],
    [TYPE.f64, Float64Array.of(1e300, NaN)],
  ];
  const index = await files.indexDat(
    dir.put(
      'all.dat',
      dat(
        ...pieces.map(([type, values], i) => ({ name: `e${i}`, type, shape: [2], payload: bytesOf(values) })),
      ),
    ),
  );
  for (const [i, [, values]] of pieces.entries()) {
    const read = await files.readEntry(index, `e${i}`);
    assert.is(read.constructor, values.constructor);
    assert.ok(bytesOf(read).equals(bytesOf(values)), values.constructor.name);
  }
});

test('safetensors entries load the same way', async () => {
  const header = { w: { dtype: 'BF16', shape: [2, 1], data_offsets: [0, 4] } };
  const index = await files.indexSafetensors(
    dir.put('m.st', safetensors(header, bytesOf(Uint16Array.of(0x3f80, 0xc000)))),
  );
  const store = engine.createStore();
  store.allocate('w', 'f32', [2, 1]);
  await files.load(store, index, [{ entry: 'w', tensor: 'w', part: 'data' }]);
  assert.equal(store.read('w'), Float32Array.of(1, -2));
  store.dispose();
});

/** A file of one u8 tensor of `bytes` zeros, without the disk space, and a store to load it into. */
async function large(
  bytes: number,
): Promise<{ path: string; index: FileIndex; load: (o?: LoadOptions) => Promise<LoadResult> }> {
  const path = dir.put('large.dat', Buffer.alloc(0));
  const head = dat({ name: 'x', type: TYPE.u8, shape: [bytes] });
  appendFileSync(path, head);
  truncateSync(path, head.length + bytes);
  const index = await files.indexDat(path);
  const load = async (options?: LoadOptions): Promise<LoadResult> => {
    const store = engine.createStore();
    store.allocate('x', 'u8', [bytes]);
    const work = files.load(store, index, [{ entry: 'x', tensor: 'x', part: 'data' }], options);
    store.dispose(); // work in flight keeps what it needs
    return work;
  };
  return { path, index, load };
}

test('a file that changes between index and load, or while it is read, is refused', async () => {
  const { path, load } = await large(128 << 20);
  assert.is((await load()).bytes, 128 << 20);
  const work = load();
  const fd = openSync(path, 'r+');
  ftruncateSync(fd, 64 << 20);
  closeSync(fd);
  assert.is((await refusal(work)).code, 'Q4221');
  assert.is((await refusal(load())).code, 'Q4221');
  const again = await large(1 << 20);
  utimesSync(again.path, 1, 1);
  assert.is((await refusal(again.load())).code, 'Q4221');
  assert.is((await refusal(files.readEntry(again.index, 'x'))).code, 'Q4221');
});

test('cancelling, and a progress callback that throws, end the load', async () => {
  const { load } = await large(128 << 20);
  assert.is((await refusal(load({ signal: AbortSignal.abort() }))).code, 'Q4501');
  const controller = new AbortController();
  const work = load({ signal: controller.signal, onProgress: () => controller.abort() });
  assert.is((await refusal(work)).code, 'Q4501');
  const thrown = new Error('from the callback');
  try {
    await load({
      onProgress: () => {
        throw thrown;
      },
    });
    assert.unreachable();
  } catch (error) {
    assert.is(error, thrown);
  }
});

test('while a program runs a load is refused, and tells of no progress', async () => {
  const store = engine.createStore();
  store.allocate('t', 'f32', [2]);
  const piece = { name: 'x', type: TYPE.f32, shape: [2], payload: bytesOf(Float32Array.of(1, 2)) };
  const index = await files.indexDat(dir.put('busy.dat', dat(piece)));
  const items: LoadItem[] = [{ entry: 'x', tensor: 't', part: 'data' }];
  const told: number[] = [];
  let refused: Promise<Q4Error> | undefined;
  await whileRunning(engine, store, () => {
    refused = refusal(files.load(store, index, items, { onProgress: (done) => told.push(done) }));
  });
  assert.is((await refused)?.code, 'Q4513');
  assert.equal(told, []);
  await files.load(store, index, items);
  assert.equal(store.read('t'), Float32Array.of(1, 2));
  store.dispose();
});

test('an index that was tampered with is refused', async () => {
  const { index } = await large(1024);
  const entry = index.entries[0]!;
  for (const lie of [
    { offset: 900 },
    { bytes: 5000, shape: [5000] },
    { offset: -1 },
    { shape: [-1] },
    { bytes: 4 },
    { offset: Number.MAX_SAFE_INTEGER },
    { offset: 0.5 },
  ]) {
    const error = await refusal(files.readEntry({ ...index, entries: [{ ...entry, ...lie }] }, 'x'));
    assert.ok(['Q4227', 'Q4514'].includes(error.code), JSON.stringify(lie));
  }
});

test.after(() => {
  engine.dispose();
  dir.remove();
});

test.run();
