/** Reproducible test data. */

/** mulberry32: uniform in [0, 1). */
export function uniformSource(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** n fp32 values, roughly normal with the given standard deviation. */
export function normals(n: number, seed: number, std = 1): Float32Array {
  const uniform = uniformSource(seed);
  return Float32Array.from({ length: n }, () => {
    let sum = 0;
    for (let i = 0; i < 12; i++) sum += uniform();
    return (sum - 6) * std;
  });
}

/** n whole numbers in [0, below). */
export function integers(n: number, seed: number, below: number): Int32Array {
  const uniform = uniformSource(seed);
  return Int32Array.from({ length: n }, () => Math.floor(uniform() * below));
}
