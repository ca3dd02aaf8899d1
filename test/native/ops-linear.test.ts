import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { linear } from '../oracle/forward.js';
import { near } from './near.js';
import { f32, openDevices, run, tensor, valuesOf, type Operand } from './op-runner.js';
import { normals } from './random-values.js';

const devices = openDevices();
const DTYPES = ['f32', 'bf16', 'f16', 'nvfp4'] as const;
// fp32 sums of K products: errors grow with √K and stay near 1e-7 · a few.
const BOUND = 2e-6;

/** x [rows, cols] → [cols, rows]. */
const transposed = (x: ArrayLike<number>, rows: number, cols: number): Float64Array =>
  Float64Array.from({ length: rows * cols }, (_, i) => x[(i % rows) * cols + Math.floor(i / rows)]!);

interface ProductCase {
  readonly what: string;
  readonly n: number;
  readonly k: number;
  readonly o: number;
  readonly x: Float32Array;
  readonly dy: Float32Array;
  readonly before: Float32Array;
  readonly weight: Operand;
  readonly y: Float64Array;
  readonly dx: Float64Array;
}

/** 1..8 rows take the matrix-vector path, more the blocked one; 272 = 2 × 128 + 16 leaves a tail of one block. */
function productCases(dtype: (typeof DTYPES)[number]): ProductCase[] {
  const shapes = [
    [16, 1],
    [272, 33],
    [144, 129],
  ] as const;
  return [1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 33].flatMap((n) =>
    shapes.map(([inputs, outputs]) => {
      const [k, o] = dtype === 'nvfp4' ? [inputs, outputs] : [inputs + 1, outputs];
      const [x, dy, before] = [normals(n * k, n), normals(n * o, n + 1), normals(n * k, n + 2)];
      const weight = tensor(dtype, [o, k], normals(o * k, k + o, 0.1));
      const w = valuesOf(weight);
      const y = linear(x, w, n, k, o);
      const dx = linear(dy, transposed(w, o, k), n, o, k);
      return { what: `${n} × ${k} → ${o}`, n, k, o, x, dy, before, weight, y, dx };
    }),
  );
}

for (const dtype of DTYPES) {
  const cases = productCases(dtype);
  for (const device of devices)
    test(`${device.name}: products with a ${dtype} weight, odd sizes`, async () => {
      for (const { what, n, k, o, ...c } of cases) {
        const [y] = await run(device, {
          op: 'linear',
          inputs: [f32([n, k], c.x), c.weight],
          outputs: [f32([n, o])],
        });
        near(y!, c.y, BOUND, what, 1e-6);
        const accumulate = n % 2;
        const [dx] = await run(device, {
          op: 'linear_dgrad',
          inputs: [f32([n, o], c.dy), c.weight],
          outputs: [f32([n, k], c.before)],
          attrs: { accumulate },
        });
        near(
          dx!,
          c.dx.map((value, i) => value + accumulate * c.before[i]!),
          BOUND,
          `dgrad ${what}`,
          1e-6,
        );
      }
    });
}

for (const device of devices) {
  test(`${device.name}: weight gradients, f32 and bf16, overwriting and accumulating`, async () => {
    for (const [n, k, o] of [
      [1, 1, 1],
      [3, 17, 33],
      [129, 33, 17],
      [20, 130, 65],
    ] as const) {
      const [dy, x] = [normals(n * o, 1), normals(n * k, 2)];
      const expected = linear(transposed(dy, n, o), transposed(x, n, k), o, n, k);
      for (const dtype of ['f32', 'bf16'] as const)
        for (const accumulate of [0, 1]) {
          const before = tensor(dtype, [o, k], normals(o * k, 3));
          const held = valuesOf(before);
          const [dw] = await run(device, {
            op: 'linear_wgrad',
            inputs: [f32([n, o], dy), f32([n, k], x)],
            outputs: [before],
            attrs: { accumulate },
          });
          // bf16 keeps 8 significant bits: rounding errs by at most 2^-8.
          const bound = dtype === 'f32' ? BOUND : 2 ** -8;
          near(
            dw!,
            expected.map((value, i) => value + accumulate * held[i]!),
            bound,
            `${dtype} ${n} ${k} ${o}`,
            1e-6,
          );
        }
    }
  });

  if (device.name !== 'reference')
    test(`${device.name}: sizes beyond every block of the product`, async () => {
      // 2100 crosses the packed depth (1024) and the step (256); 300 columns cross a task (256).
      const [n, k, o] = [40, 2100, 300];
      const [x, w] = [normals(n * k, 4), normals(o * k, 5)];
      const [y] = await run(device, {
        op: 'linear',
        inputs: [f32([n, k], x), f32([o, k], w)],
        outputs: [f32([n, o])],
      });
      near(y!, linear(x, w, n, k, o), BOUND, 'linear', 1e-6);
      // 2100 rows cross the packed rows (2048).
      const [tall] = await run(device, {
        op: 'linear',
        inputs: [f32([k, n], x), f32([9, n], w.subarray(0, 9 * n))],
        outputs: [f32([k, 9])],
      });
      near(tall!, linear(x, w, k, n, 9), BOUND, 'tall', 1e-6);
    });

  test(`${device.name}: a row's bits do not depend on the rows beside it`, async () => {
    const [k, o] = [160, 50];
    const [x, w] = [normals(40 * k, 6), normals(o * k, 7)];
    const rows = async (n: number): Promise<Float64Array> =>
      (
        await run(device, {
          op: 'linear',
          inputs: [f32([n, k], x.subarray(0, n * k)), f32([o, k], w)],
          outputs: [f32([n, o])],
        })
      )[0]!;
    const [few, many] = [await rows(12), await rows(40)];
    assert.equal(many.subarray(0, 12 * o), few);
  });

  test(`${device.name}: NaN in a weight's scale or an activation comes through`, async () => {
    for (const n of [1, 12]) {
      const x = normals(n * 32, 8);
      const weight = tensor(
        'nvfp4',
        [3, 32],
        normals(96, 9).map((value) => value + 5),
      );
      (weight.data as { scale: Uint8Array }).scale[2] = 0x7f;
      const [y] = await run(device, {
        op: 'linear',
        inputs: [f32([n, 32], x), weight],
        outputs: [f32([n, 3])],
      });
      y!.forEach((value, i) => assert.is(Number.isNaN(value), i % 3 === 1, `${n} rows, element ${i}`));
      x[3] = Number.NaN;
      const [z] = await run(device, {
        op: 'linear',
        inputs: [f32([n, 32], x), f32([2, 32], normals(64, 1))],
        outputs: [f32([n, 2])],
      });
      z!.forEach((value, i) => assert.is(Number.isNaN(value), i < 2));
    }
  });
}

test.after(() => devices.forEach(({ engine }) => engine.dispose()));
test.run();
