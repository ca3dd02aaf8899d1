/**
 * Counter-based random numbers: the same (seed, stream, index) gives the same draw on every machine, in any order.
 * Philox4x32-10; source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
 */
const MULTIPLIER_0 = 0xd2511f53;
const MULTIPLIER_1 = 0xcd9e8d57;
const WEYL_0 = 0x9e3779b9;
const WEYL_1 = 0xbb67ae85;
const ROUNDS = 10;

/** Upper 32 bits of a 32×32 bit product. */
function mulHigh(a: number, b: number): number {
  const [aLow, aHigh, bLow, bHigh] = [a & 0xffff, a >>> 16, b & 0xffff, b >>> 16];
  const middle = aHigh * bLow + ((aLow * bLow) >>> 16);
  const carry = (middle & 0xffff) + aLow * bHigh;
  return (aHigh * bHigh + Math.floor(middle / 0x10000) + Math.floor(carry / 0x10000)) >>> 0;
}

export type Counter = readonly [number, number, number, number];

/** Four 32-bit words for a 64-bit key and a 128-bit counter. */
export function philox(key: readonly [number, number], counter: Counter): [number, number, number, number] {
  let [k0, k1] = [key[0] >>> 0, key[1] >>> 0];
  let [c0, c1, c2, c3] = [counter[0] >>> 0, counter[1] >>> 0, counter[2] >>> 0, counter[3] >>> 0];
  for (let round = 0; round < ROUNDS; round++) {
    const high0 = mulHigh(MULTIPLIER_0, c0);
    const high1 = mulHigh(MULTIPLIER_1, c2);
    const low0 = Math.imul(MULTIPLIER_0, c0) >>> 0;
    const low1 = Math.imul(MULTIPLIER_1, c2) >>> 0;
    [c0, c1, c2, c3] = [(high1 ^ c1 ^ k0) >>> 0, low1, (high0 ^ c3 ^ k1) >>> 0, low0];
    k0 = (k0 + WEYL_0) >>> 0;
    k1 = (k1 + WEYL_1) >>> 0;
  }
  return [c0, c1, c2, c3];
}

const key = (seed: number): [number, number] => [seed >>> 0, Math.floor(seed / 0x100000000) >>> 0];

/** Purposes draw from different streams, so that a held-out choice and a shuffle never share numbers. */
export const STREAM = { shuffle: 1, holdOut: 2, mix: 16 } as const;

/** A number in [0, 1) with 53 random bits. */
export function uniform(seed: number, stream: number, epoch: number, index: number): number {
  const [high, low] = philox(key(seed), [index, Math.floor(index / 0x100000000), epoch, stream]);
  return ((high >>> 5) * 0x4000000 + (low >>> 6)) / 0x20000000000000;
}

/** A shuffled order of 0..count-1 (Fisher–Yates), the same for the same seed, epoch and stream. */
export function permutation(
  count: number,
  seed: number,
  epoch: number,
  stream: number = STREAM.shuffle,
): Uint32Array {
  const order = Uint32Array.from({ length: count }, (_, i) => i);
  for (let i = count - 1; i > 0; i--) {
    const j = Math.floor(uniform(seed, stream, epoch, i) * (i + 1));
    [order[i], order[j]] = [order[j]!, order[i]!];
  }
  return order;
}
