/** Writing tensor files: bytes, conversions, nothing half-made whatever goes wrong. */
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { openEngine } from '../../runtime/engine/engine.js';
import type { FileType, NumericArray, Store, WriteItem, WriteOptions } from '../../runtime/engine/types.js';
import { Q4Error } from '../../runtime/errors.js';
import { dat, quantised, scratch, TYPE } from './file-bytes.js';

const engine = openEngine({ device: 'cpu' });
const { files } = engine;
const dir = scratch();
const golden = fileURLToPath(new URL('../fixtures/d.dat', import.meta.url));
const sha256 = (bytes: Buffer): string => createHash('sha256').update(bytes).digest('hex');
const bytesOf = (array: NumericArray): Buffer =>
  Buffer.from(array.buffer, array.byteOffset, array.byteLength);

async function refusal(work: Promise<unknown>): Promise<Q4Error> {
  try {
    await work;
  } catch (error) {
    assert.instance(error, Q4Error, String(error));
    return error as Q4Error;
  }
  throw new Error('was accepted');
}

type StoreItem = Extract<WriteItem, { tensor: string }>;

/** Loads every entry of the golden file in the form it has, and gives the items that write it again. */
async function goldenStore(): Promise<{ store: Store; items: StoreItem[] }> {
  const index = await files.indexDat(golden);
  const store = engine.createStore();
  const items = index.entries.map(({ name, type, shape }): StoreItem => {
    const part = (['qdata', 'scale', 'global_scale'] as const).find((p) => name.endsWith(`.${p}`)) ?? 'data';
    const tensor = part === 'data' ? name : name.slice(0, -part.length - 1);
    if (part === 'data') store.allocate(tensor, 'f16', shape);
    else if (part === 'qdata') store.allocate(tensor, 'nvfp4', [shape[0]!, shape[1]! * 2]);
    return { name, type, shape, tensor, part };
  });
  await files.load(
    store,
    index,
    items.map(({ name, tensor, part }) => ({ entry: name, tensor, part })),
  );
  return { store, items };
}

test('the golden file, loaded and written, is the golden file', async () => {
  const { store, items } = await goldenStore();
  const path = join(dir.path, 'deep', 'er', 'copy.dat');
  const told: number[] = [];
  const result = await files.writeDat(store, path, items, { onProgress: (done) => told.push(done) });
  const bytes = readFileSync(path);
  assert.ok(bytes.equals(readFileSync(golden)));
  assert.is(result.bytes, bytes.length);
  assert.is(result.sha256, sha256(bytes));
  assert.ok(told.every((done, i) => i === 0 || done >= told[i - 1]!));
  assert.equal(readdirSync(join(dir.path, 'deep', 'er')), ['copy.dat']);
  store.dispose();
});

test('host data of every type is written as the format has it', async () => {
  const plain: [FileType, number, NumericArray][] = [
    ['u8', TYPE.u8, Uint8Array.of(1, 2)],
    ['i8', TYPE.i8, Int8Array.of(-1, 2)],
    ['bool', TYPE.bool, Uint8Array.of(0, 1)],
    ['i16', TYPE.i16, Int16Array.of(-1, 2)],
    ['i32', TYPE.i32, Int32Array.of(-1, 2)],
    ['i64', TYPE.i64, BigInt64Array.of(-1n, 2n)],
    ['f16', TYPE.f16, Uint16Array.of(0x3c00, 1)],
    ['bf16', TYPE.bf16, Uint16Array.of(0x3f80, 1)],
    ['f32', TYPE.f32, Float32Array.of(1, -0)],
    ['f64', TYPE.f64, Float64Array.of(1, 1e-300)],
  ];
  const pieces = quantised('q.weight', 2, 16);
  const items: WriteItem[] = plain.map(([type, , data], i) => ({ name: `e${i}`, type, shape: [2, 1], data }));
  items.push(
    { name: 'q.weight.qdata', type: 'u8', shape: [2, 8], data: new Uint8Array(16).fill(0x21) },
    { name: 'q.weight.scale', type: 'e4m3', shape: [2, 1], data: new Uint8Array(2).fill(0x38) },
    { name: 'q.weight.global_scale', type: 'f32', shape: [1], data: Float32Array.of(1) },
    { name: 'scalar', type: 'f32', shape: [], data: Float32Array.of(3) },
    { name: 'empty', type: 'f32', shape: [0, 7], data: new Float32Array(0) },
  );
  const path = join(dir.path, 'host.dat');
  await files.writeDat(null, path, items);
  const want = dat(
    ...plain.map(([, type, data], i) => ({ name: `e${i}`, type, shape: [2, 1], payload: bytesOf(data) })),
    ...pieces,
    { name: 'scalar', type: TYPE.f32, shape: [], payload: bytesOf(Float32Array.of(3)) },
    { name: 'empty', type: TYPE.f32, shape: [0, 7] },
  );
  assert.ok(readFileSync(path).equals(want));
  await files.writeDat(null, path, []);
  assert.equal([...readFileSync(path)], [0], 'an existing file is replaced');
});

test('f32 is written as f16 and bf16, to nearest, ties to even; what overflows is refused by name', async () => {
  const store = engine.createStore();
  store.allocate('w', 'f32', [6]);
  store.write('w', Float32Array.of(1, 1 + 2 ** -11, 1 + 3 * 2 ** -11, 65504, -(2 ** -24), 1 + 2 ** -8));
  const path = join(dir.path, 'cast.dat');
  const item = { name: 'w', shape: [6], tensor: 'w', part: 'data' } as const;
  await files.writeDat(store, path, [{ ...item, type: 'f16' }]);
  const f16 = await files.readEntry(await files.indexDat(path), 'w');
  assert.equal(f16, Uint16Array.of(0x3c00, 0x3c00, 0x3c02, 0x7bff, 0x8001, 0x3c04));
  await files.writeDat(store, path, [{ ...item, type: 'bf16' }]);
  const bf16 = await files.readEntry(await files.indexDat(path), 'w');
  assert.equal(bf16, Uint16Array.of(0x3f80, 0x3f80, 0x3f80, 0x4780, 0xb380, 0x3f80));
  store.write('w', Float32Array.of(1, 2, 65520, 0, 0, 0));
  const error = await refusal(files.writeDat(store, path, [{ ...item, type: 'f16' }]));
  assert.is(error.code, 'Q4226');
  assert.is(error.details.entry, 'w');
  await files.writeDat(store, path, [{ ...item, type: 'f16' }], { allowNonFinite: true });
  assert.is((await files.readEntry(await files.indexDat(path), 'w'))[2], 0x7c00);
  store.dispose();
});

test('tensors may be made one at a time, just before they are written', async () => {
  const store = engine.createStore();
  const shape = [300, 1000];
  const items = Array.from({ length: 4 }, (_, i) => {
    return { name: `t${i}`, type: 'bf16', shape, tensor: `t${i}`, part: 'data' } as const;
  });
  const path = join(dir.path, 'stream.dat');
  const told: [number, number][] = [];
  let most = 0;
  await files.writeDat(store, path, items, {
    beforeItem: async (item, i) => {
      await Promise.resolve();
      if (i > 0) store.free(`t${i - 1}`);
      store.allocate(item.name, 'f32', shape);
      store.write(item.name, new Float32Array(300_000).fill(i + 1));
      most = Math.max(most, store.list().length);
    },
    onProgress: (...bytes) => told.push(bytes),
  });
  assert.is(most, 1);
  assert.equal(told.at(-1), [2_400_000, 2_400_000]);
  const index = await files.indexDat(path);
  for (const [i, bits] of [0x3f80, 0x4000, 0x4040, 0x4080].entries())
    assert.ok(((await files.readEntry(index, `t${i}`)) as Uint16Array).every((b) => b === bits));
  store.dispose();
});

test('safetensors: header, alignment, metadata and values', async () => {
  const { store, items } = await goldenStore();
  const path = join(dir.path, 'model.safetensors');
  const metadata = { format: 'pt', note: 'a "quoted" \\ line\nand 字' };
  const extra: WriteItem = { name: 'odd', type: 'bool', shape: [3], data: Uint8Array.of(1, 0, 1) };
  const result = await files.writeSafetensors(store, path, [extra, ...items], { metadata });
  const bytes = readFileSync(path);
  assert.is(result.bytes, bytes.length);
  assert.is(result.sha256, sha256(bytes));
  const length = Number(bytes.readBigUInt64LE());
  assert.is((8 + length) % 8, 0);
  const header = JSON.parse(bytes.subarray(8, 8 + length).toString()) as Record<
    string,
    { dtype: string; shape: number[]; data_offsets: [number, number] }
  >;
  assert.equal(header['__metadata__'], metadata);
  assert.is(Object.keys(header).length, items.length + 2);
  const size: Record<string, number> = { F32: 4, F16: 2, BF16: 2, U8: 1, BOOL: 1, F8_E4M3: 1 };
  const original = await files.indexDat(golden);
  for (const { name, shape } of items) {
    const { dtype, shape: written, data_offsets } = header[name]!;
    assert.equal(written, [...shape]);
    assert.is((8 + length + data_offsets[0]) % size[dtype]!, 0, `${name} is aligned`);
    const stands = bytesOf(await files.readEntry(original, name));
    assert.ok(
      stands.equals(bytes.subarray(8 + length + data_offsets[0], 8 + length + data_offsets[1])),
      name,
    );
  }
  const index = await files.indexSafetensors(path);
  assert.equal({ ...index.metadata }, metadata);
  assert.equal(await files.readEntry(index, 'odd'), Uint8Array.of(1, 0, 1));
  store.dispose();
});

test('packed codes become U8, a global scale may be a scalar', async () => {
  const path = join(dir.path, 'packed.safetensors');
  const store = engine.createStore();
  store.allocate('w', 'nvfp4', [2, 16]);
  store.write('w', Float32Array.of(0.5), 'global_scale');
  await files.writeSafetensors(store, path, [
    { name: 'w.weight_packed', type: 'e2m1x2', shape: [2, 8], tensor: 'w', part: 'qdata' },
    { name: 'w.weight_scale', type: 'e4m3', shape: [2, 1], tensor: 'w', part: 'scale' },
    { name: 'w.weight_scale_2', type: 'f32', shape: [], tensor: 'w', part: 'global_scale' },
  ]);
  const index = await files.indexSafetensors(path);
  assert.equal(index.entries.map((e) => `${e.name} ${e.type} ${e.shape.length}`).sort(), [
    'w.weight_packed u8 2',
    'w.weight_scale e4m3 2',
    'w.weight_scale_2 f32 0',
  ]);
  store.allocate('v', 'nvfp4', [2, 16]);
  await files.load(store, index, [{ entry: 'w.weight_scale_2', tensor: 'v', part: 'global_scale' }]);
  assert.equal(store.read('v', 'global_scale'), Float32Array.of(0.5));
  store.dispose();
});

const f32 = (name: string, ...values: number[]): WriteItem => {
  return { name, type: 'f32', shape: [values.length], data: Float32Array.from(values) };
};
const codes: WriteItem = { name: 'x.qdata', type: 'u8', shape: [1, 8], data: new Uint8Array(8) };
const scale = (byte: number): WriteItem => {
  return { name: 'x.scale', type: 'e4m3', shape: [1, 1], data: Uint8Array.of(byte) };
};
const throws = (): never => {
  throw new Q4Error('Q4900', 'from the caller');
};

const FAILURES: readonly [what: string, items: WriteItem[], code: string, options?: WriteOptions][] = [
  ['NaN', [f32('a', 1), f32('b', NaN)], 'Q4220'],
  ['a name twice', [f32('a', 1), f32('a', 1)], 'Q4214'],
  ['a path as a name', [f32('../a', 1)], 'Q4213'],
  ['an empty name', [f32('', 1)], 'Q4208'],
  ['rank 9', [{ ...f32('a', 1), shape: Array<number>(9).fill(1) }], 'Q4209'],
  ['a size that overflows', [{ ...f32('a', 1), shape: [2 ** 40, 2 ** 40] }], 'Q4211'],
  ['codes without scales', [codes], 'Q4216'],
  ['scales of the wrong shape', [codes, { ...scale(0x38), shape: [1], type: 'e4m3' }], 'Q4217'],
  ['a negative scale', [codes, scale(0xb8)], 'Q4219'],
  ['data of another length', [{ ...f32('a', 1, 2), shape: [3] }], 'Q4227'],
  ['data of another kind', [{ ...f32('a', 1), type: 'i32' }], 'Q4225'],
  [
    'a tensor that is not there',
    [{ name: 'a', type: 'f32', shape: [1], tensor: 'none', part: 'data' }],
    'Q4511',
  ],
  [
    'a shape that is not the tensor’s',
    [{ name: 'a', type: 'f32', shape: [3], tensor: 't', part: 'data' }],
    'Q4224',
  ],
  [
    'a type the tensor cannot have',
    [{ name: 'a', type: 'i32', shape: [2], tensor: 't', part: 'data' }],
    'Q4225',
  ],
  ['a signal that is aborted', [f32('a', 1)], 'Q4501', { signal: AbortSignal.abort() }],
  [
    'a caller that fails before an item',
    [f32('a', 1), f32('b', 1)],
    'Q4900',
    { beforeItem: (_, i) => void (i === 1 && throws()) },
  ],
  ['a progress callback that throws', [f32('a', 1), f32('b', 1)], 'Q4900', { onProgress: throws }],
  [
    'more than the disk holds',
    [{ ...f32('a', 1), shape: [2 ** 50] }],
    'Q4412',
    { beforeItem: () => undefined },
  ],
];

for (const [what, items, code, options] of FAILURES)
  for (const format of ['writeDat', 'writeSafetensors'] as const) {
    if (format === 'writeSafetensors' && items.some((item) => item.name.startsWith('x.'))) continue;
    test(`${format}: ${what} leaves the old file and nothing else`, async () => {
      const place = join(dir.path, 'failing');
      mkdirSync(place, { recursive: true });
      const path = join(place, 'model');
      writeFileSync(path, 'the old file');
      const store = engine.createStore();
      store.allocate('t', 'f32', [2]);
      const error = await refusal(files[format](store, path, items, options));
      assert.is(error.code, code, error.message);
      assert.equal(readdirSync(place), ['model']);
      assert.is(readFileSync(path, 'utf8'), 'the old file');
      store.dispose();
    });
  }

test('what a killed process left behind is removed by the next writer', async () => {
  const place = join(dir.path, 'swept');
  mkdirSync(place);
  const script = `
    import { addon } from ${JSON.stringify(new URL('../../runtime/engine/addon.ts', import.meta.url).href)};
    await addon().fileCreate(process.argv[2], 'dat', [{ name: 'a', type: 'f32', shape: [4] }], []);
    console.log('made');
    setInterval(() => {}, 1000);`;
  writeFileSync(join(dir.path, 'killed.mts'), script);
  const child = spawn(
    process.execPath,
    ['--import', import.meta.resolve('tsx'), join(dir.path, 'killed.mts'), join(place, 'a.dat')],
    { stdio: ['ignore', 'pipe', 'inherit'] },
  );
  await once(child.stdout, 'data');
  writeFileSync(join(place, '.q4run-mine'), 'not ours');
  await files.writeDat(null, join(place, 'b.dat'), []);
  assert.is(readdirSync(place).length, 3, 'a living writer keeps its file');
  child.kill('SIGKILL');
  await once(child, 'close');
  assert.is(readdirSync(place).length, 3);
  await files.writeDat(null, join(place, 'b.dat'), []);
  assert.equal(readdirSync(place).sort(), ['.q4run-mine', 'b.dat']);
});

test('places that cannot be written to are refused', async () => {
  mkdirSync(join(dir.path, 'folder'), { recursive: true });
  assert.is((await refusal(files.writeDat(null, join(dir.path, 'folder'), []))).code, 'Q4202');
  assert.is((await refusal(files.writeDat(null, '/dev/null', []))).code, 'Q4202');
  writeFileSync(join(dir.path, 'file'), '');
  assert.is((await refusal(files.writeDat(null, join(dir.path, 'file', 'x.dat'), []))).code, 'Q4413');
  assert.not(existsSync(join(dir.path, 'folder', 'x.dat')));
});

test.after(() => {
  engine.dispose();
  dir.remove();
});

test.run();
