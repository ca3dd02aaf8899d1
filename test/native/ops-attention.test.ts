import { test } from 'uvu';
import { dot, gradient } from '../oracle/differences.js';
import { attention, type AttentionCase } from '../oracle/forward.js';
import { near, sameBits } from './near.js';
import { f32, i32, openDevices, run, type Device, type Operand } from './op-runner.js';
import { normals, uniformSource } from './random-values.js';

const devices = openDevices();

/** Random packing: where each query's sample starts. */
function packed(batch: number, steps: number, seed: number): Int32Array {
  const uniform = uniformSource(seed);
  const from = new Int32Array(batch * steps);
  for (let b = 0; b < batch; b++)
    for (let t = 0, start = 0; t < steps; t++) {
      if (uniform() < 0.1) start = t;
      from[b * steps + t] = start;
    }
  return from;
}

const attrs = (c: AttentionCase): Record<string, number> => ({
  batch: c.batch,
  heads: c.heads,
  kv_heads: c.kvHeads,
  head_dim: c.dim,
});
const indices = (values: AttentionCase['past']): Operand | null =>
  values ? i32([values.length], values) : null;

async function attend(
  device: Device,
  c: AttentionCase,
  q: Float32Array,
  k: Float32Array,
  v: Float32Array,
): Promise<Float64Array[]> {
  const rows = c.batch * c.steps;
  const kv = [c.batch * c.capacity, c.kvHeads * c.dim];
  return run(device, {
    op: 'attention',
    inputs: [f32([rows, c.heads * c.dim], q), f32(kv, k), f32(kv, v), indices(c.attendFrom), indices(c.past)],
    outputs: [f32([rows, c.heads * c.dim]), f32([rows, c.heads]), null],
    attrs: attrs(c),
  });
}

const inputs = (c: AttentionCase, seed: number): [Float32Array, Float32Array, Float32Array] => [
  normals(c.batch * c.steps * c.heads * c.dim, seed, 2),
  normals(c.batch * c.capacity * c.kvHeads * c.dim, seed + 1),
  normals(c.batch * c.capacity * c.kvHeads * c.dim, seed + 2),
];

const CASES: readonly AttentionCase[] = [
  { batch: 1, steps: 1, capacity: 1, heads: 1, kvHeads: 1, dim: 2 },
  { batch: 2, steps: 3, capacity: 3, heads: 4, kvHeads: 2, dim: 17 },
  { batch: 1, steps: 17, capacity: 17, heads: 6, kvHeads: 2, dim: 32 },
  { batch: 2, steps: 33, capacity: 33, heads: 2, kvHeads: 2, dim: 20, attendFrom: packed(2, 33, 1) },
  // Across the blocks of 112 queries and 128 keys.
  { batch: 1, steps: 113, capacity: 113, heads: 2, kvHeads: 1, dim: 16 },
  { batch: 1, steps: 260, capacity: 260, heads: 2, kvHeads: 1, dim: 16, attendFrom: packed(1, 260, 2) },
  // Caches: a decode step, a few steps, a chunk behind others; one sequence empty, one nearly full.
  { batch: 2, steps: 1, capacity: 40, heads: 4, kvHeads: 2, dim: 32, past: [0, 39] },
  { batch: 2, steps: 4, capacity: 150, heads: 2, kvHeads: 1, dim: 64, past: [140, 3] },
  {
    batch: 2,
    steps: 9,
    capacity: 150,
    heads: 2,
    kvHeads: 1,
    dim: 24,
    past: [127, 0],
    attendFrom: new Int32Array(18).fill(0),
  },
];

for (const device of devices) {
  test(`${device.name}: attention`, async () => {
    for (const [i, c] of CASES.entries()) {
      const [q, k, v] = inputs(c, 10 * i);
      const [out, lse] = await attend(device, c, q, k, v);
      const expected = attention(q, k, v, c);
      near(out!, expected.out, 2e-6, `case ${i}: out`);
      near(lse!, expected.lse, 1e-6, `case ${i}: lse`);
    }
  });

  test(`${device.name}: a cache gives the bits of the keys themselves`, async () => {
    for (const steps of [1, 3, 5, 20, 140]) {
      const c = { batch: 2, steps, capacity: steps, heads: 4, kvHeads: 2, dim: 16 };
      const [q, k, v] = inputs(c, steps);
      const direct = await attend(device, c, q, k, v);
      const capacity = steps + 37;
      const width = c.kvHeads * c.dim;
      const widen = (rows: Float32Array): Float32Array => {
        const cache = normals(2 * capacity * width, 99);
        for (let b = 0; b < 2; b++)
          cache.set(rows.subarray(b * steps * width, (b + 1) * steps * width), b * capacity * width);
        return cache;
      };
      const cached = await attend(device, { ...c, capacity, past: [0, 0] }, q, widen(k), widen(v));
      sameBits(cached[0]!, direct[0]!, `${steps} steps: out`);
      sameBits(cached[1]!, direct[1]!, `${steps} steps: lse`);
    }
  });

  test(`${device.name}: NaN comes through`, async () => {
    for (const steps of [2, 20]) {
      const c = { batch: 1, steps, capacity: steps, heads: 1, kvHeads: 1, dim: 16 };
      const [q, k, v] = inputs(c, 3);
      k[5] = Number.NaN; // key 0: every query sees it
      const [out, lse] = await attend(device, c, q, k, v);
      near(
        [out!.filter(Number.isNaN).length, lse!.filter(Number.isNaN).length],
        [out!.length, lse!.length],
        0,
        'NaNs',
        0,
      );
    }
  });

  test(`${device.name}: attention_backward against central differences`, async () => {
    const cases: readonly AttentionCase[] = [
      { batch: 1, steps: 1, capacity: 1, heads: 1, kvHeads: 1, dim: 2 },
      { batch: 2, steps: 3, capacity: 3, heads: 4, kvHeads: 2, dim: 5 },
      {
        batch: 1,
        steps: 9,
        capacity: 9,
        heads: 2,
        kvHeads: 1,
        dim: 4,
        attendFrom: [0, 0, 0, 3, 3, 3, 6, 7, 7],
      },
    ];
    for (const [i, c] of cases.entries()) {
      const [q, k, v] = inputs(c, 50 + i);
      const dout = normals(q.length, 60 + i);
      const { out, lse } = attention(q, k, v, c);
      const actual = await backward(device, c, q, k, v, out, lse, dout);
      const loss = (a: ArrayLike<number>, b: ArrayLike<number>, d: ArrayLike<number>): number =>
        dot(attention(a, b, d, c).out, dout);
      near(
        actual[0]!,
        gradient((x) => loss(x, k, v), q),
        1e-5,
        `case ${i}: dq`,
        1e-6,
      );
      near(
        actual[1]!,
        gradient((x) => loss(q, x, v), k),
        1e-5,
        `case ${i}: dk`,
        1e-6,
      );
      near(
        actual[2]!,
        gradient((x) => loss(q, k, x), v),
        1e-5,
        `case ${i}: dv`,
        1e-6,
      );
    }
  });
}

async function backward(
  device: Device,
  c: AttentionCase,
  q: Float32Array,
  k: Float32Array,
  v: Float32Array,
  out: ArrayLike<number>,
  lse: ArrayLike<number>,
  dout: Float32Array,
): Promise<Float64Array[]> {
  const rows = c.batch * c.steps;
  const [wide, narrow] = [
    [rows, c.heads * c.dim],
    [rows, c.kvHeads * c.dim],
  ];
  return run(device, {
    op: 'attention_backward',
    inputs: [
      f32(wide, dout),
      f32(wide, q),
      f32(narrow, k),
      f32(narrow, v),
      f32(wide, out),
      f32([rows, c.heads], lse),
      indices(c.attendFrom),
    ],
    outputs: [f32(wide), f32(narrow), f32(narrow), null],
    attrs: attrs(c),
  });
}

test('attention_backward across blocks: every instruction set agrees with the reference', async () => {
  const cases: readonly AttentionCase[] = [
    { batch: 2, steps: 130, capacity: 130, heads: 4, kvHeads: 2, dim: 20 },
    { batch: 1, steps: 241, capacity: 241, heads: 2, kvHeads: 1, dim: 16, attendFrom: packed(1, 241, 5) },
  ];
  for (const [i, c] of cases.entries()) {
    const [q, k, v] = inputs(c, 70 + i);
    const dout = normals(q.length, 80 + i);
    const [reference, ...others] = devices;
    const [out, lse] = await attend(reference!, c, q, k, v);
    const expected = await backward(reference!, c, q, k, v, out!, lse!, dout);
    for (const device of others) {
      const actual = await backward(device, c, q, k, v, out!, lse!, dout);
      for (const [which, values] of actual.entries())
        near(values, expected[which]!, 5e-6, `${device.name}, case ${i}: ${['dq', 'dk', 'dv'][which]}`);
    }
  }
});

test.after(() => devices.forEach(({ engine }) => engine.dispose()));
test.run();
