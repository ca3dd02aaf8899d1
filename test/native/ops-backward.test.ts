import { test } from 'uvu';
import { dot, gradient } from '../oracle/differences.js';
import { headNormRope, linear, rmsNorm, swiglu } from '../oracle/forward.js';
import { near } from './near.js';
import { f32, i32, openDevices, run, tensor, valuesOf } from './op-runner.js';
import { integers, normals } from './random-values.js';

const devices = openDevices();
// fp32 results against differences in double, themselves good to about 1e-9.
const BOUND = 1e-5;
const added = (a: ArrayLike<number>, b: ArrayLike<number>, factor = 1): Float64Array =>
  Float64Array.from(a, (value, i) => value + factor * b[i]!);

for (const device of devices) {
  test(`${device.name}: embedding_backward adds up repeated ids`, async () => {
    const [v, h] = [7, 70];
    const ids = [3, 3, 0, 6, 3];
    const dy = normals(5 * h, 1);
    for (const dtype of ['f32', 'bf16'] as const)
      for (const accumulate of [0, 1]) {
        const table = tensor(dtype, [v, h], normals(v * h, 2));
        const held = valuesOf(table);
        const expected = gradient(
          (w) =>
            dot(
              ids.flatMap((id) => [...w.subarray(id * h, (id + 1) * h)]),
              dy,
            ),
          new Float64Array(v * h),
          1,
        );
        const [dtable] = await run(device, {
          op: 'embedding_backward',
          inputs: [f32([5, h], dy), i32([5], ids)],
          outputs: [table],
          attrs: { accumulate },
        });
        near(
          dtable!,
          added(expected, held, accumulate),
          dtype === 'f32' ? 1e-6 : 2 ** -8,
          `${dtype} accumulate ${accumulate}`,
        );
      }
  });

  test(`${device.name}: rms_norm_backward`, async () => {
    for (const [n, c] of [
      [1, 1],
      [3, 17],
      [5, 33],
    ] as const) {
      const [x, w, dy] = [normals(n * c, 1), normals(c, 2), normals(n * c, 3)];
      const { rstd } = rmsNorm(x, w, n, c, 1e-6);
      const dx = gradient((p) => dot(rmsNorm(p, w, n, c, 1e-6).y, dy), x);
      const dw = gradient((p) => dot(rmsNorm(x, p, n, c, 1e-6).y, dy), w);
      const [residual, before] = [normals(n * c, 4), normals(c, 5)];
      for (const accumulate of [0, 1]) {
        const actual = await run(device, {
          op: 'rms_norm_backward',
          inputs: [
            f32([n, c], dy),
            f32([n, c], x),
            f32([c], w),
            f32([n], rstd),
            accumulate ? f32([n, c], residual) : null,
          ],
          outputs: [f32([n, c]), f32([c], before), f32([64])],
          attrs: { accumulate },
        });
        near(actual[0]!, added(dx, residual, accumulate), BOUND, `dx ${n}×${c}`, 1e-6);
        near(actual[1]!, added(dw, before, accumulate), BOUND, `dweight ${n}×${c}`, 1e-6);
      }
    }
  });

  test(`${device.name}: head_norm_rope_backward`, async () => {
    for (const [n, heads, dim] of [
      [1, 1, 2],
      [3, 2, 6],
      [2, 3, 34],
    ] as const) {
      const [x, w, dy] = [normals(n * heads * dim, 1), normals(dim, 2), normals(n * heads * dim, 3)];
      const positions = integers(n, 4, 500);
      const forward = (a: ArrayLike<number>, b: ArrayLike<number>): number =>
        dot(headNormRope(a, b, positions, n, heads, dim, 1e-6, 1e4).y, dy);
      const { rstd } = headNormRope(x, w, positions, n, heads, dim, 1e-6, 1e4);
      const before = normals(dim, 5);
      for (const accumulate of [0, 1]) {
        const actual = await run(device, {
          op: 'head_norm_rope_backward',
          inputs: [
            f32([n, heads * dim], dy),
            f32([n, heads * dim], x),
            f32([dim], w),
            f32([n, heads], rstd),
            i32([n], positions),
          ],
          outputs: [f32([n, heads * dim]), f32([dim], before), f32([64])],
          attrs: { head_dim: dim, theta: 1e4, accumulate },
        });
        near(
          actual[0]!,
          gradient((p) => forward(p, w), x),
          BOUND,
          `dx ${n} ${heads} ${dim}`,
          1e-6,
        );
        near(
          actual[1]!,
          added(
            gradient((p) => forward(x, p), w),
            before,
            accumulate,
          ),
          BOUND,
          `dweight ${n} ${heads} ${dim}`,
          1e-6,
        );
      }
    }
  });

  test(`${device.name}: swiglu_backward, also in place of dy`, async () => {
    for (const c of [1, 3, 17, 129]) {
      const [gate, up, dy] = [normals(c, 1, 3), normals(c, 2), normals(c, 3)];
      const actual = await run(device, {
        op: 'swiglu_backward',
        inputs: [f32([1, c], dy), f32([1, c], gate), f32([1, c], up)],
        outputs: [f32([1, c]), f32([1, c])],
      });
      near(
        actual[0]!,
        gradient((p) => dot(swiglu(p, up), dy), gate),
        BOUND,
        `dgate ${c}`,
        1e-6,
      );
      near(
        actual[1]!,
        gradient((p) => dot(swiglu(gate, p), dy), up),
        BOUND,
        `dup ${c}`,
        1e-6,
      );
    }
  });

  test(`${device.name}: linear_dgrad and linear_wgrad are the gradients of linear`, async () => {
    const [n, k, o] = [3, 16, 5];
    const [x, dy] = [normals(n * k, 1), normals(n * o, 2)];
    for (const dtype of ['f32', 'nvfp4'] as const) {
      const weight = tensor(dtype, [o, k], normals(o * k, 3));
      const w = valuesOf(weight);
      const [dx] = await run(device, {
        op: 'linear_dgrad',
        inputs: [f32([n, o], dy), weight],
        outputs: [f32([n, k])],
        attrs: { accumulate: 0 },
      });
      near(
        dx!,
        gradient((p) => dot(linear(p, w, n, k, o), dy), x),
        BOUND,
        `dx ${dtype}`,
      );
      const [dw] = await run(device, {
        op: 'linear_wgrad',
        inputs: [f32([n, o], dy), f32([n, k], x)],
        outputs: [f32([o, k])],
        attrs: { accumulate: 0 },
      });
      near(
        dw!,
        gradient((p) => dot(linear(x, p, n, k, o), dy), w),
        BOUND,
        `dw ${dtype}`,
      );
    }
  });
}

test.after(() => devices.forEach(({ engine }) => engine.dispose()));
test.run();
