/** Philox4x32-10 (Salmon et al., SC 2011) with BigInt, and what q4run draws from it (native/core/philox.h's layout). */

const MASK = 0xffffffffn;

export function philox(counter: readonly bigint[], key: readonly bigint[]): bigint[] {
  let [c0, c1, c2, c3] = counter as [bigint, bigint, bigint, bigint];
  let [k0, k1] = key as [bigint, bigint];
  for (let round = 0; round < 10; round++) {
    const a = 0xd2511f53n * c0;
    const b = 0xcd9e8d57n * c2;
    [c0, c1, c2, c3] = [(b >> 32n) ^ c1 ^ k0, b & MASK, (a >> 32n) ^ c3 ^ k1, a & MASK];
    k0 = (k0 + 0x9e3779b9n) & MASK;
    k1 = (k1 + 0xbb67ae85n) & MASK;
  }
  return [c0, c1, c2, c3];
}

export const USES = { rounding: 1n, normal: 2n, sampling: 3n } as const;

/** The 32-bit word of an element: four elements share a counter. */
export function word(
  seed: bigint,
  use: keyof typeof USES,
  stream: number,
  step: number,
  element: number,
): number {
  const counter = [BigInt(element >> 2), USES[use] << 24n, BigInt(stream >>> 0), BigInt(step >>> 0)];
  return Number(philox(counter, [seed & MASK, (seed >> 32n) & MASK])[element & 3]!);
}

/** Box–Muller on the words of an element's pair. */
export function normal(seed: bigint, stream: number, element: number): number {
  const first = element & ~1;
  const radius = Math.sqrt(-2 * Math.log((word(seed, 'normal', stream, 0, first) + 1) / 2 ** 32));
  const angle = (2 * Math.PI * word(seed, 'normal', stream, 0, first + 1)) / 2 ** 32;
  return radius * (element % 2 === 0 ? Math.cos(angle) : Math.sin(angle));
}
