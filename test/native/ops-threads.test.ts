import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { f32, i32, openDevice, runOp, tensor, type Device, type OpCase, type Operand } from './op-runner.js';
import { integers, normals } from './random-values.js';

const threads = [1, 2, 3].map((count) => openDevice(`${count} threads`, { threads: count })!);

/** Ops big enough for several tasks each. */
function cases(): OpCase[] {
  const [n, k, o] = [150, 272, 300];
  const x = f32([n, k], normals(n * k, 1));
  const dy = f32([n, o], normals(n * o, 2));
  const weight = tensor('nvfp4', [o, k], normals(o * k, 3));
  const [rows, width] = [2 * 150, 4 * 32];
  const act = (seed: number, cols = width): Operand => f32([rows, cols], normals(rows * cols, seed));
  const shape = { batch: 2, heads: 4, kv_heads: 2, head_dim: 32 };
  const labels = i32([n], integers(n, 4, o));
  const n1 = 50000;
  const vector = (seed: number): Operand => f32([n1], normals(n1, seed, 0.1));
  const positive = f32(
    [n1],
    normals(n1, 21, 0.1).map((value) => value * value),
  );
  const hyper = f32([8], [1e-3, 0.9, 0.95, 1e-8, 0.1, 0.1, 0.05, 0]);
  return [
    { op: 'linear', inputs: [x, weight], outputs: [f32([n, o])] },
    { op: 'linear', inputs: [f32([3, k], normals(3 * k, 5)), weight], outputs: [f32([3, o])] },
    { op: 'linear_dgrad', inputs: [dy, weight], outputs: [f32([n, k])], attrs: { accumulate: 0 } },
    {
      op: 'linear_wgrad',
      inputs: [dy, x],
      outputs: [f32([o, k], normals(o * k, 6))],
      attrs: { accumulate: 1 },
    },
    {
      op: 'linear_cross_entropy',
      inputs: [x, weight, labels, f32([1], [0.01])],
      outputs: [f32([1]), f32([n, k]), f32([o, k]), f32([64, o])],
      attrs: { accumulate: 0 },
    },
    {
      op: 'attention',
      inputs: [act(7), act(8, 64), act(9, 64), null, null],
      outputs: [act(0), f32([rows, 4]), null],
      attrs: shape,
    },
    {
      op: 'attention_backward',
      inputs: [
        act(10),
        act(7),
        act(8, 64),
        act(9, 64),
        act(11),
        f32(
          [rows, 4],
          normals(rows * 4, 12).map((v) => v + 3),
        ),
        null,
      ],
      outputs: [act(0), act(0, 64), act(0, 64), null],
      attrs: shape,
    },
    {
      op: 'rms_norm_backward',
      inputs: [act(13), act(14), f32([width], normals(width, 15)), f32([rows], normals(rows, 16)), null],
      outputs: [act(0), f32([width]), f32([64])],
      attrs: { accumulate: 0 },
    },
    {
      op: 'head_norm_rope_backward',
      inputs: [
        act(13),
        act(14),
        f32([32], normals(32, 15)),
        f32([rows, 4], normals(rows * 4, 16)),
        i32([rows], integers(rows, 17, 100)),
      ],
      outputs: [act(0), f32([32]), f32([64])],
      attrs: { head_dim: 32, theta: 1e4, accumulate: 0 },
    },
    {
      op: 'embedding_backward',
      inputs: [act(18), i32([rows], integers(rows, 19, 7))],
      outputs: [f32([7, width])],
      attrs: { accumulate: 0 },
    },
    { op: 'sum_squares', inputs: [vector(20)], outputs: [f32([1])], attrs: { slot: 0 } },
    {
      op: 'adamw',
      inputs: [vector(20), f32([4], [1, 1, 1, 1]), hyper, i32([4], [1, 2, 3, 0])],
      outputs: [tensor('bf16', [n1], normals(n1, 22)), vector(23), positive],
      attrs: { decay: 1, stream: 1 },
    },
    {
      op: 'adamw_amax',
      inputs: [vector(20), f32([4], [1, 1, 1, 1]), hyper, i32([4], [1, 2, 3, 0])],
      outputs: [vector(22), vector(23), positive, f32([1])],
      attrs: { decay: 1, stream: 1, slot: 0 },
    },
    { op: 'random_normal', outputs: [f32([n1])], attrs: { seed_lo: 1, seed_hi: 2, stream: 3, std: 1 } },
  ];
}

const bytes = (operands: (Operand | null)[]): string =>
  operands
    .filter((operand) => operand !== null)
    .map(({ data }) => data as Float32Array)
    .map((data) => Buffer.from(data.buffer, data.byteOffset, data.byteLength).toString('base64'))
    .join('|');

for (const op of cases())
  test(`${op.op}: 1, 2 and 3 threads give the same bytes, twice`, async () => {
    const once = async (device: Device): Promise<string> => bytes(await runOp(device, op));
    const first = await once(threads[0]!);
    for (const device of threads)
      for (let time = 0; time < 2; time++) assert.is((await once(device)) === first, true, device.name);
  });

test.after(() => threads.forEach(({ engine }) => engine.dispose()));
test.run();
