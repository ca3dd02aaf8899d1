import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { permutation, philox, STREAM, uniform, type Counter } from '../../runtime/text/philox.js';

// Known answers of Random123 (kat_vectors, philox4x32-10).
test('Philox gives the published numbers', () => {
  const ones = 0xffffffff;
  const cases: [[number, number], Counter, number[]][] = [
    [
      [0, 0],
      [0, 0, 0, 0],
      [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8],
    ],
    [
      [ones, ones],
      [ones, ones, ones, ones],
      [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd],
    ],
    [
      [0xa4093822, 0x299f31d0],
      [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
      [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
    ],
  ];
  for (const [key, counter, expected] of cases) assert.equal(philox(key, counter), expected);
});

test('a permutation holds every number once, and differs by seed, epoch and stream', () => {
  const of = (seed: number, epoch: number, stream?: number) => [...permutation(1000, seed, epoch, stream)];
  const first = of(1, 0);
  assert.equal(first, of(1, 0));
  assert.equal(
    [...first].sort((a, b) => a - b),
    Array.from({ length: 1000 }, (_, i) => i),
  );
  for (const other of [of(2, 0), of(1, 1), of(1 + 2 ** 32, 0), of(1, 0, STREAM.mix)])
    assert.not.equal(other, first);
  assert.equal(of(1, 0).length, 1000);
  assert.equal([...permutation(0, 1, 0)], []);
  assert.equal([...permutation(1, 1, 0)], [0]);
});

test('draws are even', () => {
  const counts = new Array<number>(10).fill(0);
  for (let i = 0; i < 20_000; i++) counts[Math.floor(10 * uniform(3, STREAM.holdOut, 0, i))]!++;
  // 2,000 expected in each; five standard deviations are 212.
  for (const count of counts) assert.ok(Math.abs(count - 2000) < 212, `${count}`);
});

test.run();
