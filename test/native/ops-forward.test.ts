import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { headNormRope, rmsNorm, swiglu } from '../oracle/forward.js';
import { near, sameBits } from './near.js';
import { f32, i32, openDevices, run, tensor, valuesOf } from './op-runner.js';
import { integers, normals } from './random-values.js';

const devices = openDevices();
const WIDTHS = [1, 3, 16, 17, 33, 129, 260];

for (const device of devices) {
  test(`${device.name}: embedding copies rows of f32, bf16 and f16 tables`, async () => {
    for (const dtype of ['f32', 'bf16', 'f16'] as const)
      for (const width of WIDTHS) {
        const table = tensor(dtype, [11, width], normals(11 * width, width));
        const ids = [0, 10, 3, 3, 7];
        const [y] = await run(device, {
          op: 'embedding',
          inputs: [table, i32([5], ids)],
          outputs: [f32([5, width])],
        });
        const values = valuesOf(table);
        const expected = ids.flatMap((id) => [...values.subarray(id * width, (id + 1) * width)]);
        sameBits(y!, expected, `${dtype} ${width}`);
      }
  });

  test(`${device.name}: an id outside the table is refused`, async () => {
    const op = { op: 'embedding', inputs: [f32([4, 2]), i32([1], [4])], outputs: [f32([1, 2])] };
    try {
      await run(device, op);
      assert.unreachable('id 4 of a table with 4 rows was accepted');
    } catch (error) {
      assert.is((error as { code?: string }).code, 'Q4510');
      assert.match((error as Error).message, /index 4/);
    }
  });

  test(`${device.name}: rms_norm and add_rms_norm`, async () => {
    for (const [n, c] of [
      [1, 1],
      [3, 17],
      [129, 33],
      [5, 260],
      [2, 4096],
    ] as const) {
      const [x, branch, weight] = [normals(n * c, 1, 3), normals(n * c, 2), normals(c, 3)];
      const plain = await run(device, {
        op: 'rms_norm',
        inputs: [f32([n, c], x), f32([c], weight)],
        outputs: [f32([n, c]), f32([n])],
        attrs: { eps: 1e-6 },
      });
      const expected = rmsNorm(x, weight, n, c, 1e-6);
      near(plain[0]!, expected.y, 1e-6, `y ${n}×${c}`);
      near(plain[1]!, expected.rstd, 1e-6, `rstd ${n}×${c}`);

      const fused = await run(device, {
        op: 'add_rms_norm',
        inputs: [f32([n, c], x), f32([n, c], branch), f32([c], weight)],
        outputs: [f32([n, c]), f32([n, c]), f32([n])],
        attrs: { eps: 1e-6 },
      });
      const sum = Float32Array.from(x, (value, i) => value + branch[i]!);
      sameBits(fused[0]!, sum, 'the sum is rounded once');
      const after = rmsNorm(sum, weight, n, c, 1e-6);
      near(fused[1]!, after.y, 1e-6, `add y ${n}×${c}`);
      near(fused[2]!, after.rstd, 1e-6, `add rstd ${n}×${c}`);
    }
  });

  test(`${device.name}: head_norm_rope`, async () => {
    for (const [n, heads, dim] of [
      [1, 1, 2],
      [17, 3, 6],
      [33, 2, 32],
      [5, 4, 128],
      [3, 1, 258],
    ] as const) {
      const [x, weight] = [normals(n * heads * dim, 4, 2), normals(dim, 5)];
      const positions = integers(n, 6, 3000);
      const [y, rstd] = await run(device, {
        op: 'head_norm_rope',
        inputs: [f32([n, heads * dim], x), f32([dim], weight), i32([n], positions)],
        outputs: [f32([n, heads * dim]), f32([n, heads])],
        attrs: { head_dim: dim, eps: 1e-6, theta: 5e6 },
      });
      const expected = headNormRope(x, weight, positions, n, heads, dim, 1e-6, 5e6);
      near(y!, expected.y, 2e-6, `y ${n}×${heads}×${dim}`);
      near(rstd!, expected.rstd, 1e-6, 'rstd');
    }
  });

  test(`${device.name}: swiglu, also far out`, async () => {
    for (const c of [...WIDTHS, 40000]) {
      const [gate, up] = [normals(c, 7, 4), normals(c, 8)];
      const [y] = await run(device, {
        op: 'swiglu',
        inputs: [f32([1, c], gate), f32([1, c], up)],
        outputs: [f32([1, c])],
      });
      near(y!, swiglu(gate, up), 1e-6, `width ${c}`);
    }
    const far = Float32Array.of(-200, -100, -88, -30, 0, 30, 88, 100, 3e38);
    const ones = new Float32Array(far.length).fill(1);
    const [y] = await run(device, {
      op: 'swiglu',
      inputs: [f32([1, 9], far), f32([1, 9], ones)],
      outputs: [f32([1, 9])],
    });
    for (const [i, expected] of swiglu(far, ones).entries())
      assert.ok(
        Math.abs(y![i]! - expected) <= 2e-6 * Math.abs(expected) + 1e-37,
        `silu(${far[i]}) = ${y![i]}`,
      );
  });

  test(`${device.name}: add and gather_rows`, async () => {
    for (const c of WIDTHS) {
      const [a, b] = [normals(7 * c, 9), normals(7 * c, 10)];
      const [y] = await run(device, {
        op: 'add',
        inputs: [f32([7, c], a), f32([7, c], b)],
        outputs: [f32([7, c])],
      });
      sameBits(
        y!,
        Float32Array.from(a, (value, i) => value + b[i]!),
        `add ${c}`,
      );
      const rows = [6, 0, 6];
      const [gathered] = await run(device, {
        op: 'gather_rows',
        inputs: [f32([7, c], a), i32([3], rows)],
        outputs: [f32([3, c])],
      });
      sameBits(
        gathered!,
        rows.flatMap((row) => [...a.subarray(row * c, (row + 1) * c)]),
        `gather ${c}`,
      );
    }
  });

  test(`${device.name}: kv_append writes behind what is there and drops what does not fit`, async () => {
    const [batch, steps, capacity, width] = [3, 4, 6, 5];
    const [k, v] = [normals(batch * steps * width, 11), normals(batch * steps * width, 12)];
    const caches = [normals(batch * capacity * width, 13), normals(batch * capacity * width, 14)];
    const past = [0, 2, 5];
    const after = await run(device, {
      op: 'kv_append',
      inputs: [f32([batch * steps, width], k), f32([batch * steps, width], v), i32([batch], past)],
      outputs: caches.map((cache) => f32([batch * capacity, width], cache)),
      attrs: { batch },
    });
    for (const [which, rows] of [k, v].entries()) {
      const expected = caches[which]!.slice();
      for (let b = 0; b < batch; b++)
        for (let t = 0; t < steps; t++)
          if (past[b]! + t < capacity)
            expected.set(
              rows.subarray((b * steps + t) * width, (b * steps + t + 1) * width),
              (b * capacity + past[b]! + t) * width,
            );
      sameBits(after[which]!, expected, which === 0 ? 'keys' : 'values');
    }
  });

  test(`${device.name}: NaN comes through`, async () => {
    const x = normals(40, 15);
    x[21] = Number.NaN;
    const ones = new Float32Array(40).fill(1);
    const silu = await run(device, {
      op: 'swiglu',
      inputs: [f32([1, 40], x), f32([1, 40], ones)],
      outputs: [f32([1, 40])],
    });
    assert.ok(Number.isNaN(silu[0]![21]!) && !Number.isNaN(silu[0]![20]!));
    const norm = await run(device, {
      op: 'rms_norm',
      inputs: [f32([1, 40], x), f32([40], ones)],
      outputs: [f32([1, 40]), f32([1])],
      attrs: { eps: 1e-6 },
    });
    assert.ok(norm[0]!.every(Number.isNaN) && Number.isNaN(norm[1]![0]!));
  });

  test(`${device.name}: bf16 activations are refused by name`, async () => {
    const gate = tensor('bf16', [1, 4], normals(4, 1));
    try {
      await run(device, {
        op: 'swiglu',
        inputs: [gate, gate],
        outputs: [tensor('bf16', [1, 4], normals(4, 2))],
      });
      assert.unreachable('bf16 was accepted');
    } catch (error) {
      assert.is((error as { code?: string }).code, 'Q4512');
      assert.match((error as Error).message, /swiglu.*bf16/);
    }
  });
}

test.after(() => devices.forEach(({ engine }) => engine.dispose()));
test.run();
