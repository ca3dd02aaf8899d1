import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { decode, E4M3, encode } from '../oracle/number-formats.js';
import { dequantise, globalScale, quantise, type Quantised } from '../oracle/nvfp4.js';
import { near, sameBits } from './near.js';
import {
  f32,
  i32,
  openDevices,
  run,
  runOp,
  tensor,
  valuesOf,
  type Device,
  type Operand,
} from './op-runner.js';
import { normals, uniformSource } from './random-values.js';

const devices = openDevices();
const empty = (rows: number, cols: number): Operand => ({
  dtype: 'nvfp4',
  shape: [rows, cols],
  data: {
    qdata: new Uint8Array((rows * cols) / 2),
    scale: new Uint8Array((rows * cols) / 16),
    globalScale: 0,
  },
});

/** Matrices of 16 columns a block: each row of `blocks` is one. */
const TIES = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, 6, -0.25, -0.75, -1.25, -1.75, -2.5, -3.5, -5, -6];

/** Blocks that meet every corner of the format. */
function cornerBlocks(): Float32Array {
  const uniform = uniformSource(77);
  const blocks: number[][] = [
    TIES,
    TIES.map((x) => x * 448), // amax 2688: the block scale is 448 and the global scale 1
    TIES.map((x) => -x / 1024),
    TIES.map((x, i) => x * (1 + (i % 3 === 0 ? 2 ** -23 : 0))), // just above ties
    TIES.map((x, i) => x * (1 - (i % 2 === 0 ? 2 ** -24 : 0))), // just below
    new Array<number>(16).fill(0),
    new Array<number>(16).fill(-0),
    Array.from({ length: 16 }, (_, i) => (i === 7 ? 1e-30 : 0)),
    Array.from({ length: 16 }, () => 1e-42 * uniform()), // subnormal
    Array.from({ length: 16 }, () => 1e4 * (uniform() - 0.5)),
  ];
  // Every E4M3 scale, and the ties between them, as block amax.
  for (let code = 0; code < 126; code++) {
    const [a, b] = [decode(E4M3, code), decode(E4M3, code + 1)];
    for (const amax of [a * 6, (a + b) * 3])
      blocks.push(Array.from({ length: 16 }, (_, i) => (i === 3 ? -amax : amax * (uniform() - 0.5))));
  }
  return Float32Array.from(blocks.flat());
}

const MATRICES: readonly [name: string, values: Float32Array][] = [
  ['corners', cornerBlocks()],
  ['random', normals(33 * 48, 1, 0.02)],
  ['huge', normals(5 * 16, 2, 1e37)],
  ['tiny', normals(5 * 16, 3, 1e-39)],
  ['zero', new Float32Array(64)],
];

async function quantised(
  device: Device,
  master: Operand,
  amax: number | null,
  before: Operand,
): Promise<{ weight: Quantised; changed: number }> {
  const [weight, changed] = await runOp(device, {
    op: 'quantize_nvfp4',
    inputs: [master, amax === null ? null : f32([4], [1e30, amax / 3, amax, 1e30])],
    outputs: [before, i32([3], [7, 7, 7])],
    attrs: { slot_begin: 1, slot_end: amax === null ? 2 : 3, changed_slot: 1 },
  });
  const counts = changed!.data as Int32Array;
  assert.is(counts[0]! + counts[2]!, 14, 'other slots are left alone');
  return { weight: weight!.data as Quantised, changed: counts[1]! };
}

for (const device of devices) {
  test(`${device.name}: codes and scales are the oracle's, bit for bit`, async () => {
    for (const [name, values] of MATRICES)
      for (const dtype of ['f32', 'bf16'] as const)
        for (const levels of [1, 2]) {
          const shape = [values.length / 16, 16];
          const master = tensor(dtype, shape, values);
          const x = valuesOf(master);
          const amax = x.reduce((a, value) => Math.max(a, Math.abs(value)), 0);
          const expected = quantise(x, levels === 2 ? globalScale(amax) : 1);
          const { weight, changed } = await quantised(
            device,
            master,
            levels === 2 ? amax : null,
            empty(shape[0]!, 16),
          );
          const what = `${name}, ${dtype}, ${levels} levels`;
          assert.is(weight.globalScale, expected.globalScale, what);
          assert.equal(weight.scale, expected.scale, `${what}: scales`);
          assert.equal(weight.qdata, expected.qdata, `${what}: codes`);
          const nonzero = [...expected.qdata].reduce(
            (n, byte) => n + Number((byte & 15) !== 0) + Number(byte >> 4 !== 0),
            0,
          );
          assert.is(changed, nonzero, `${what}: changed against zeros`);
        }
  });

  test(`${device.name}: exact ties go to even`, async () => {
    const { weight } = await quantised(device, f32([1, 16], TIES), null, empty(1, 16));
    assert.is(weight.scale[0], encode(E4M3, 1));
    const values = dequantise(weight);
    sameBits(values, [0, 1, 1, 2, 2, 4, 4, 6, -0, -1, -1, -2, -2, -4, -4, -6], 'ties');
  });

  test(`${device.name}: a second quantisation of the same master changes nothing`, async () => {
    const master = f32([33, 48], MATRICES[1]![1]);
    const first = await quantised(device, master, 0.1, empty(33, 48));
    const second = await quantised(device, master, 0.1, {
      dtype: 'nvfp4',
      shape: [33, 48],
      data: first.weight,
    });
    assert.is(second.changed, 0);
  });

  test(`${device.name}: dequantize_nvfp4 and count_changed`, async () => {
    const weight = tensor('nvfp4', [7, 48], normals(7 * 48, 4));
    const [y] = await run(device, { op: 'dequantize_nvfp4', inputs: [weight], outputs: [f32([7, 48])] });
    sameBits(y!, valuesOf(weight), 'f32');
    const [half] = await run(device, {
      op: 'dequantize_nvfp4',
      inputs: [weight],
      outputs: [tensor('bf16', [7, 48], new Float32Array(7 * 48))],
    });
    sameBits(half!, valuesOf(tensor('bf16', [7, 48], valuesOf(weight))), 'bf16');

    const parts = weight.data as Quantised;
    const count = async (changes: Partial<Quantised>): Promise<number[]> => {
      const other: Operand = { ...weight, data: { ...parts, ...changes } };
      const [counts] = await run(device, {
        op: 'count_changed',
        inputs: [weight, other],
        outputs: [i32([3], [7, 7, 7])],
        attrs: { slot: 1 },
      });
      return [...counts!];
    };
    assert.equal(await count({}), [7, 0, 7]);
    const scale = parts.scale.map((bits) => (bits < 0x70 ? bits + 8 : bits));
    assert.equal(await count({ scale, globalScale: 3 }), [7, 0, 7], 'scales alone are no other code');
    const qdata = parts.qdata.slice();
    qdata[0]! ^= 0x01; // a low nibble
    qdata[5]! ^= 0x70; // a high one, three bits of it
    qdata[qdata.length - 1]! ^= 0x88; // both signs
    assert.equal(await count({ qdata }), [7, 4, 7]);
  });

  test(`${device.name}: a NaN in the master is seen in the weight`, async () => {
    const values = normals(48, 5);
    values[20] = Number.NaN;
    const [amax] = await run(device, {
      op: 'amax',
      inputs: [f32([1, 48], values)],
      outputs: [f32([1])],
      attrs: { slot: 0 },
    });
    assert.ok(Number.isNaN(amax![0]!));
    const { weight } = await quantised(device, f32([1, 48], values), null, empty(1, 48));
    assert.equal(
      [...weight.scale].map((bits) => bits === 0x7f),
      [false, true, false],
    );
  });
}

test('quantising loses what NVFP4 loses: about 9.5 % rms at two levels', async () => {
  const values = normals(256 * 64, 6, 0.02);
  const amax = values.reduce((a, x) => Math.max(a, Math.abs(x)), 0);
  for (const device of devices) {
    const { weight } = await quantised(device, f32([256, 64], values), amax, empty(256, 64));
    const y = dequantise(weight);
    const error = Math.sqrt(
      y.reduce((sum, value, i) => sum + (value - values[i]!) ** 2, 0) /
        values.reduce((sum, x) => sum + x * x, 0),
    );
    near([error], [0.095], 0.05, device.name);
  }
});

test.after(() => devices.forEach(({ engine }) => engine.dispose()));
test.run();
