import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { BF16, decode, encode, F16 } from '../oracle/number-formats.js';
import { normal, philox, word } from '../oracle/philox.js';
import { near, sameBits } from './near.js';
import { f32, i32, openDevices, run, runOp, tensor, valuesOf } from './op-runner.js';
import { normals } from './random-values.js';

const devices = openDevices();
const SIZES = [1, 17, 33, 129, 20001];
const HYPER = { lr: 1e-2, beta1: 0.9, beta2: 0.95, eps: 1e-8, decay: 0.1 };
const STEP = 3;
const hyper = f32(
  [8],
  [
    HYPER.lr,
    HYPER.beta1,
    HYPER.beta2,
    HYPER.eps,
    HYPER.decay,
    1 - HYPER.beta1 ** STEP,
    1 - HYPER.beta2 ** STEP,
    0,
  ],
);
const SEED = 0x9abcdef012345678n;
const rng = i32([4], [Number(BigInt.asIntN(32, SEED)), Number(BigInt.asIntN(32, SEED >> 32n)), STEP, 0]);

/** One AdamW update in double precision. */
function adamw(
  w: number,
  g: number,
  m: number,
  v: number,
  decay: boolean,
): { w: number; m: number; v: number } {
  const [m1, v1] = [HYPER.beta1 * m + (1 - HYPER.beta1) * g, HYPER.beta2 * v + (1 - HYPER.beta2) * g * g];
  const decayed = decay ? w - HYPER.lr * HYPER.decay * w : w;
  const step = m1 / (1 - HYPER.beta1 ** STEP) / (Math.sqrt(v1 / (1 - HYPER.beta2 ** STEP)) + HYPER.eps);
  return { w: decayed - HYPER.lr * step, m: m1, v: v1 };
}

test('the oracle draws the published Philox4x32-10 vectors', () => {
  const hex = (words: bigint[]): string => words.map((w) => w.toString(16).padStart(8, '0')).join(' ');
  assert.is(hex(philox([0n, 0n, 0n, 0n], [0n, 0n])), '6627e8d5 e169c58d bc57ac4c 9b00dbd8');
  const pi = [0x243f6a88n, 0x85a308d3n, 0x13198a2en, 0x03707344n];
  assert.is(hex(philox(pi, [0xa4093822n, 0x299f31d0n])), 'd16cfe09 94fdcceb 5001e420 24126ea1');
});

for (const device of devices) {
  test(`${device.name}: sum_squares and amax write their slot`, async () => {
    for (const n of SIZES)
      for (const dtype of ['f32', 'bf16', 'f16'] as const) {
        const x = tensor(dtype, [n], normals(n, n));
        const values = valuesOf(x);
        if (dtype !== 'f16') {
          const [sums] = await run(device, {
            op: 'sum_squares',
            inputs: [x],
            outputs: [f32([3], [5, 5, 5])],
            attrs: { slot: 1 },
          });
          near(sums!, [5, values.reduce((s, v) => s + v * v, 0), 5], 1e-6, `${dtype} ${n}`);
        }
        const [largest] = await run(device, {
          op: 'amax',
          inputs: [x],
          outputs: [f32([3], [5, 5, 5])],
          attrs: { slot: 2 },
        });
        assert.equal([...largest!], [5, 5, values.reduce((a, v) => Math.max(a, Math.abs(v)), 0)]);
      }
  });

  test(`${device.name}: grad_stats clips, and applies only what is finite`, async () => {
    const stats = async (partials: number[], loss: number, maxNorm: number): Promise<number[]> => {
      const inputs = [f32([partials.length], partials), f32([1], [loss])];
      return [
        ...(
          await run(device, { op: 'grad_stats', inputs, outputs: [f32([4])], attrs: { max_norm: maxNorm } })
        )[0]!,
      ];
    };
    near(await stats([9, 16], 2, 1), [5, 1 / (5 + 1e-6), 1, 2], 1e-6, 'clipped');
    assert.equal(await stats([9, 16], 2, 0), [5, 1, 1, 2]);
    assert.equal(await stats([9, 16], 2, 100), [5, 1, 1, 2]);
    assert.equal(await stats([0], 0, 1), [0, 1, 1, 0]);
    assert.is((await stats([Infinity], 2, 1))[2], 0);
    assert.is((await stats([Number.NaN], 2, 1))[2], 0);
    assert.is((await stats([4], Number.NaN, 1))[2], 0);
  });

  test(`${device.name}: adamw, fp32 masters`, async () => {
    for (const n of SIZES)
      for (const decay of [0, 1])
        for (const gradType of ['f32', 'bf16'] as const) {
          const grad = tensor(gradType, [n], normals(n, 1, 0.01));
          const [w, m] = [normals(n, 2), normals(n, 3, 0.01)];
          const v = normals(n, 4, 0.01).map((x) => x * x);
          const g = valuesOf(grad);
          const expected = Array.from(w, (x, i) => adamw(x, g[i]! * 0.5, m[i]!, v[i]!, decay === 1));
          const inputs = [grad, f32([4], [1, 0.5, 1, 1]), hyper, rng];
          const outputs = [f32([n], w), f32([n], m), f32([n], v)];
          const actual = await run(device, { op: 'adamw', inputs, outputs, attrs: { decay, stream: 2 } });
          near(
            actual[0]!,
            expected.map((e) => e.w),
            1e-6,
            `w ${n}`,
          );
          near(
            actual[1]!,
            expected.map((e) => e.m),
            1e-6,
            `m ${n}`,
          );
          near(
            actual[2]!,
            expected.map((e) => e.v),
            1e-6,
            `v ${n}`,
          );

          const skipped = await run(device, {
            op: 'adamw',
            inputs: [grad, f32([4], [Infinity, 1, 0, 1]), hyper, rng],
            outputs,
            attrs: { decay, stream: 2 },
          });
          sameBits(skipped[0]!, w, 'a step that is not applied leaves the master');
          sameBits(skipped[1]!, m, 'and m');
        }
  });

  test(`${device.name}: adamw_amax is adamw, then amax`, async () => {
    for (const n of SIZES)
      for (const masterType of ['f32', 'bf16'] as const)
        for (const applied of [1, 0]) {
          const inputs = [tensor('bf16', [n], normals(n, 1)), f32([4], [1, 0.5, applied, 1]), hyper, rng];
          const outputs = [
            tensor(masterType, [n], normals(n, 2)),
            f32([n], normals(n, 3)),
            f32(
              [n],
              normals(n, 4).map((x) => x * x),
            ),
          ];
          const attrs = { decay: 1, stream: 2 };
          const updated = await runOp(device, { op: 'adamw', inputs, outputs, attrs });
          const slots = f32([3], [5, 5, 5]);
          const [largest] = await runOp(device, {
            op: 'amax',
            inputs: [updated[0]!],
            outputs: [slots],
            attrs: { slot: 1 },
          });
          const fused = await runOp(device, {
            op: 'adamw_amax',
            inputs,
            outputs: [...outputs, slots],
            attrs: { ...attrs, slot: 1 },
          });
          assert.equal(fused, [...updated, largest], `${n} ${masterType} ${applied}`);
        }
  });

  test(`${device.name}: adamw rounds bf16 masters stochastically, from Philox`, async () => {
    const n = 203;
    const master = tensor('bf16', [n], normals(n, 5));
    const grad = normals(n, 6);
    const inputs = [f32([n], grad), f32([4], [1, 1, 1, 1]), hyper, rng];
    const zeros = f32([n]);
    // The same update on an fp32 copy says what is to be rounded.
    const exact = await runOp(device, {
      op: 'adamw',
      inputs,
      outputs: [f32([n], valuesOf(master)), zeros, zeros],
      attrs: { decay: 1, stream: 9 },
    });
    const rounded = await runOp(device, {
      op: 'adamw',
      inputs,
      outputs: [master, zeros, zeros],
      attrs: { decay: 1, stream: 9 },
    });
    const bits = new Uint32Array((exact[0]!.data as Float32Array).buffer.slice(0));
    const expected = bits.map((b, i) => (b + (word(SEED, 'rounding', 9, STEP, i) & 0xffff)) >>> 16);
    assert.equal([...(rounded[0]!.data as Uint16Array)], [...expected]);
  });

  test(`${device.name}: stochastic rounding is right on average`, async () => {
    // lr·decay shrinks 1 to 0.999; bf16 steps there are 2^-8: the mean over many elements must be 0.999.
    const n = 1 << 16;
    const inputs = [f32([n]), f32([4], [1, 1, 1, 1]), hyper, rng];
    const outputs = [tensor('bf16', [n], new Float32Array(n).fill(1)), f32([n]), f32([n])];
    const [w] = await run(device, { op: 'adamw', inputs, outputs, attrs: { decay: 1, stream: 0 } });
    const mean = w!.reduce((a, b) => a + b, 0) / n;
    // Standard error: step/2 · … ≤ 2^-9/√n ≈ 8e-6.
    assert.ok(Math.abs(mean - 0.999) < 4e-5, `mean ${mean}`);
  });

  test(`${device.name}: fill and cast`, async () => {
    for (const n of SIZES) {
      assert.equal(await run(device, { op: 'fill', outputs: [f32([n])], attrs: { value: -1.5 } }), [
        new Float64Array(n).fill(-1.5),
      ]);
      assert.equal(await run(device, { op: 'fill', outputs: [i32([n])], attrs: { value: 3 } }), [
        new Float64Array(n).fill(3),
      ]);
    }
    const corners = [
      0,
      -0,
      1,
      -1.5,
      65504,
      65519.99,
      65520,
      1e-8,
      6e-8,
      3.4e38,
      1e-40,
      Infinity,
      -Infinity,
      1.00390625,
      1.01171875,
    ];
    const values = Float32Array.from([...corners, ...normals(300, 8, 1000), ...normals(50, 9, 1e-6)]);
    const n = values.length;
    for (const [to, format] of [
      ['bf16', BF16],
      ['f16', F16],
    ] as const) {
      const [narrow] = await runOp(device, {
        op: 'cast',
        inputs: [f32([n], values)],
        outputs: [tensor(to, [n], new Float32Array(n))],
      });
      const codes = [...(narrow!.data as Uint16Array)];
      assert.equal(
        codes,
        Array.from(values, (x) => encode(format, x)),
        to,
      );
      const [wide] = await run(device, { op: 'cast', inputs: [narrow!], outputs: [f32([n])] });
      sameBits(
        wide!,
        codes.map((code) => decode(format, code)),
        `${to} back`,
      );
    }
  });

  test(`${device.name}: random_normal draws Box–Muller from Philox`, async () => {
    const n = 10001;
    const attrs = { seed_lo: Number(SEED & 0xffffffffn), seed_hi: Number(SEED >> 32n), stream: 5, std: 0.02 };
    const [y] = await run(device, { op: 'random_normal', outputs: [f32([n])], attrs });
    near(
      y!.subarray(0, 101),
      Array.from({ length: 101 }, (_, i) => 0.02 * normal(SEED, 5, i)),
      1e-6,
      'values',
    );
    const mean = y!.reduce((a, b) => a + b, 0) / n;
    const deviation = Math.sqrt(y!.reduce((a, b) => a + b * b, 0) / n);
    assert.ok(
      Math.abs(mean) < 0.001 && Math.abs(deviation - 0.02) < 0.001,
      `mean ${mean}, deviation ${deviation}`,
    );
  });

  test(`${device.name}: increment stops at its maximum`, async () => {
    const [x] = await run(device, {
      op: 'increment',
      outputs: [i32([3], [0, 7, 9])],
      attrs: { by: 2, max: 9 },
    });
    assert.equal([...x!], [2, 9, 9]);
  });
}

test.after(() => devices.forEach(({ engine }) => engine.dispose()));
test.run();
