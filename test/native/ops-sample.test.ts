import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { word } from '../oracle/philox.js';
import { candidates, penalise, pick, type SamplingOptions } from '../oracle/sampling.js';
import { f32, i32, openDevices, run, u8, type Device } from './op-runner.js';
import { normals } from './random-values.js';

const devices = openDevices();
const PLAIN: SamplingOptions = { temperature: 1, topK: 0, topP: 1, minP: 0, repetitionPenalty: 1 };
const SEED = 0x1234567887654321n;

interface Draw {
  readonly ids: number[];
  readonly seen: Float64Array;
}

/** Samples one token a row; row b draws with counter past[b]. */
async function sample(
  device: Device,
  logits: ArrayLike<number>,
  rows: number,
  options: SamplingOptions,
  past: ArrayLike<number>,
  seen?: ArrayLike<number>,
  greedy = false,
): Promise<Draw> {
  const vocabulary = logits.length / rows;
  const settings = [
    options.temperature,
    options.topK,
    options.topP,
    options.minP,
    options.repetitionPenalty,
    0,
    0,
    0,
  ];
  const seed = [Number(BigInt.asIntN(32, SEED)), Number(BigInt.asIntN(32, SEED >> 32n))];
  const repeat = (values: number[]): number[] => Array.from({ length: rows }, () => values).flat();
  const [after, ids] = await run(device, {
    op: 'sample',
    attrs: { greedy: greedy ? 1 : 0 },
    inputs: [
      f32([rows, vocabulary], logits),
      f32([rows, 8], repeat(settings)),
      i32([rows, 2], repeat(seed)),
      i32([rows], past),
    ],
    outputs: [u8([rows, vocabulary], seen), i32([rows]), null],
  });
  return { ids: [...ids!], seen: after! };
}

const uniform = (row: number, counter: number): number =>
  (word(SEED, 'sampling', row, counter, 0) >>> 8) / 2 ** 24;

for (const device of devices) {
  test(`${device.name}: temperature 0 takes the first of the largest`, async () => {
    const logits = [1, 5, 5, -2, /**/ -1, -3, -1, -7];
    const { ids, seen } = await sample(device, logits, 2, { ...PLAIN, temperature: 0 }, [0, 0]);
    assert.equal(ids, [1, 0]);
    assert.equal([...seen], [0, 1, 0, 0, 1, 0, 0, 0]);
    assert.equal((await sample(device, logits, 2, PLAIN, [0, 0], undefined, true)).ids, [1, 0], 'greedily');
  });

  test(`${device.name}: the contract's draw, for every mix of cuts`, async () => {
    const rows = 24;
    const vocabulary = 37;
    const mixes: SamplingOptions[] = [
      PLAIN,
      { ...PLAIN, temperature: 0.3 },
      { ...PLAIN, topK: 5 },
      { ...PLAIN, topP: 0.7 },
      { ...PLAIN, minP: 0.2 },
      { temperature: 1.7, topK: 9, topP: 0.8, minP: 0.05, repetitionPenalty: 1.3 },
    ];
    for (const [which, options] of mixes.entries()) {
      const logits = normals(rows * vocabulary, which, 2);
      const seen = Uint8Array.from({ length: rows * vocabulary }, (_, i) => Number(i % 5 === 0));
      const past = Int32Array.from({ length: rows }, (_, b) => b * 3);
      const drawn = await sample(device, logits, rows, options, past, seen);
      for (let b = 0; b < rows; b++) {
        const range = [b * vocabulary, (b + 1) * vocabulary] as const;
        const penalised = penalise(
          logits.subarray(...range),
          seen.subarray(...range),
          options.repetitionPenalty,
        );
        assert.is(
          drawn.ids[b],
          pick(candidates(penalised, options), uniform(b, past[b]!)),
          `mix ${which}, row ${b}`,
        );
        assert.is(drawn.seen[b * vocabulary + drawn.ids[b]!], 1, 'the sampled token is marked');
      }
    }
  });

  test(`${device.name}: nearly flat logits, where thousands of tokens survive`, async () => {
    const vocabulary = 3000;
    for (const [which, options] of [
      PLAIN,
      { ...PLAIN, topP: 0.95 },
      { ...PLAIN, minP: 0.5 },
      { ...PLAIN, topK: 700, topP: 0.9, temperature: 2 },
    ].entries()) {
      const logits = normals(4 * vocabulary, 20 + which, 0.2);
      const { ids } = await sample(device, logits, 4, options, [5, 6, 7, 8]);
      for (let b = 0; b < 4; b++) {
        const row = [...logits.subarray(b * vocabulary, (b + 1) * vocabulary)];
        assert.is(ids[b], pick(candidates(row, options), uniform(b, 5 + b)), `mix ${which}, row ${b}`);
      }
    }
  });

  test(`${device.name}: corners always leave one token`, async () => {
    const logits = normals(500, 3, 3);
    const best = logits.indexOf(Math.max(...logits));
    for (const options of [
      { topK: 1 },
      { topP: 1e-9 },
      { topP: 0 },
      { minP: 1 },
      { temperature: 1e-6 },
    ] as Partial<SamplingOptions>[])
      assert.equal(
        (await sample(device, logits, 1, { ...PLAIN, ...options }, [4])).ids,
        [best],
        JSON.stringify(options),
      );
    // Equal logits: min_p 1 keeps them all, top_k cuts by id.
    const flat = new Float32Array(64);
    const { ids } = await sample(device, flat, 1, { ...PLAIN, minP: 1, topK: 3 }, [1]);
    assert.ok(ids[0]! < 3);
    // −∞ everywhere but one place; a top_k beyond the vocabulary; NaN is never drawn.
    const single = new Float32Array(64).fill(-Infinity);
    single[40] = -3;
    single[41] = Number.NaN;
    assert.equal((await sample(device, single, 1, { ...PLAIN, topK: 1000 }, [1])).ids, [40]);
    const hopeless = await sample(device, new Float32Array(64).fill(-Infinity), 1, PLAIN, [1]);
    assert.ok(hopeless.ids[0]! >= 0 && hopeless.ids[0]! < 64);
  });

  test(`${device.name}: the penalty divides what is positive and multiplies what is not`, async () => {
    const logits = [2, 1.5, -1, -1.2];
    const greedy = { ...PLAIN, temperature: 0, repetitionPenalty: 2 };
    assert.equal((await sample(device, logits, 1, greedy, [0], [1, 0, 0, 0])).ids, [1]);
    assert.equal((await sample(device, [-1, -1.2], 1, greedy, [0], [1, 0])).ids, [1]);
  });

  test(`${device.name}: many draws follow the probabilities, and repeat with their counter`, async () => {
    const rows = 4000;
    const one = [0.5, 1, -1, 0, 2];
    const logits = Array.from({ length: rows }, () => one).flat();
    const past = Array.from({ length: rows }, (_, b) => b % 7);
    const { ids } = await sample(device, logits, rows, PLAIN, past);
    assert.equal((await sample(device, logits, rows, PLAIN, past)).ids, ids);
    const total = one.reduce((sum, x) => sum + Math.exp(x), 0);
    // Pearson's χ², 4 degrees of freedom: 23.5 has probability 1e-4, and the seed is fixed.
    const chi = one.reduce((sum, x, id) => {
      const expected = (rows * Math.exp(x)) / total;
      return sum + (ids.filter((i) => i === id).length - expected) ** 2 / expected;
    }, 0);
    assert.ok(chi < 23.5, `χ² = ${chi}`);
  });
}

test.after(() => devices.forEach(({ engine }) => engine.dispose()));
test.run();
