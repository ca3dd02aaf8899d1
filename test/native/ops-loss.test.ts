import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { gradient } from '../oracle/differences.js';
import { crossEntropy, l1 } from '../oracle/forward.js';
import { near } from './near.js';
import { f32, i32, openDevices, run, tensor, valuesOf, type Operand } from './op-runner.js';
import { normals } from './random-values.js';

const devices = openDevices();

interface LossCase {
  readonly what: string;
  readonly n: number;
  readonly h: number;
  readonly v: number;
  readonly inputs: Operand[];
  readonly loss: number;
  readonly dx: Float64Array;
  readonly dw: Float64Array;
}

const shapes = [
  { n: 1, h: 16, v: 3, labels: [2] },
  { n: 5, h: 16, v: 17, labels: [0, -100, 16, 3, -1] },
  { n: 11, h: 16, v: 33, labels: [1, 2, 3, -100, 5, 6, 7, 8, 9, 10, 32] },
];
const cases: LossCase[] = shapes.flatMap(({ n, h, v, labels }) =>
  (['f32', 'bf16', 'f16', 'nvfp4'] as const).map((dtype) => {
    const [x, scale] = [normals(n * h, 1), Math.fround(1 / 7)];
    const weight = tensor(dtype, [v, h], normals(v * h, 2));
    const w = valuesOf(weight);
    return {
      ...{ what: `${dtype} ${n}×${h}×${v}`, n, h, v },
      inputs: [f32([n, h], x), weight, i32([n], labels), f32([1], [scale])],
      loss: crossEntropy(x, w, labels, scale, n, h, v),
      dx: gradient((p) => crossEntropy(p, w, labels, scale, n, h, v), x),
      dw: gradient((p) => crossEntropy(x, p, labels, scale, n, h, v), w),
    };
  }),
);

for (const device of devices) {
  test(`${device.name}: linear_cross_entropy, its gradients, chunks and rows that do not count`, async () => {
    for (const { what, n, h, v, ...c } of cases) {
      const common = { op: 'linear_cross_entropy', inputs: c.inputs };
      const before = normals(v * h, 3);
      for (const accumulate of [0, 1]) {
        // Scratch of 4 rows: the last case takes three chunks.
        const outputs = [f32([1], [2]), f32([n, h]), f32([v, h], before), f32([4, v])];
        const actual = await run(device, { ...common, outputs, attrs: { accumulate } });
        near(actual[0]!, [c.loss + 2 * accumulate], 2e-6, `loss ${what}`);
        near(actual[1]!, c.dx, 1e-5, `dx ${what}`, 1e-6);
        near(
          actual[2]!,
          c.dw.map((g, i) => g + accumulate * before[i]!),
          1e-5,
          `dw ${what}`,
          1e-6,
        );
      }
      const outputs = [f32([1]), null, null, f32([4, v])];
      const [alone] = await run(device, { ...common, outputs, attrs: { accumulate: 0 } });
      near(alone!, [c.loss], 2e-6, `loss without gradients ${what}`);
    }
  });

  test(`${device.name}: logits far apart neither overflow nor vanish`, async () => {
    const x = f32([1, 16], new Float32Array(16).fill(30));
    const w = normals(5 * 16, 4);
    w.fill(3, 0, 16);
    w.fill(-3, 16, 32);
    const inputs = [x, f32([5, 16], w), i32([1], [1]), f32([1], [1])];
    const [loss, dx] = await run(device, {
      op: 'linear_cross_entropy',
      inputs,
      outputs: [f32([1]), f32([1, 16]), f32([5, 16]), f32([1, 5])],
      attrs: { accumulate: 0 },
    });
    near(loss!, [2880], 1e-6, 'loss');
    near(dx!, new Float64Array(16).fill(6), 1e-6, 'dx');
  });

  test(`${device.name}: a label outside the vocabulary is refused`, async () => {
    try {
      await run(device, {
        op: 'linear_cross_entropy',
        inputs: [f32([1, 16]), f32([3, 16]), i32([1], [3]), f32([1], [1])],
        outputs: [f32([1]), null, null, f32([1, 3])],
        attrs: { accumulate: 0 },
      });
      assert.unreachable('label 3 of 3 was accepted');
    } catch (error) {
      assert.is((error as { code?: string }).code, 'Q4510');
    }
  });

  test(`${device.name}: l1_loss`, async () => {
    for (const c of [1, 17, 129]) {
      const [x, target] = [normals(3 * c, 5), normals(3 * c, 6)];
      const [loss, dx] = await run(device, {
        op: 'l1_loss',
        inputs: [f32([3, c], x), f32([3, c], target), f32([1], [0.5])],
        outputs: [f32([1], [1]), f32([3, c])],
        attrs: { accumulate: 1 },
      });
      near(loss!, [1 + l1(x, target, 0.5)], 1e-6, `loss ${c}`);
      near(
        dx!,
        gradient((p) => l1(p, target, 0.5), x),
        1e-6,
        `dx ${c}`,
      );
    }
  });
}

test.after(() => devices.forEach(({ engine }) => engine.dispose()));
test.run();
