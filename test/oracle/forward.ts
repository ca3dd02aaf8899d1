/** Forward formulas of native/core/backend.h in double precision, row-major, one loop per sum. */

export type Values = ArrayLike<number>;

/** x [N, K] · Wᵀ, W [O, K] → [N, O]. */
export function linear(x: Values, w: Values, n: number, k: number, o: number): Float64Array {
  const y = new Float64Array(n * o);
  for (let row = 0; row < n; row++)
    for (let out = 0; out < o; out++) {
      let sum = 0;
      for (let p = 0; p < k; p++) sum += x[row * k + p]! * w[out * k + p]!;
      y[row * o + out] = sum;
    }
  return y;
}

export interface Normed {
  readonly y: Float64Array;
  readonly rstd: Float64Array;
}

/** x [N, C], weight [C]. */
export function rmsNorm(x: Values, weight: Values, n: number, c: number, eps: number): Normed {
  const y = new Float64Array(n * c);
  const rstd = new Float64Array(n);
  for (let row = 0; row < n; row++) {
    let squares = 0;
    for (let i = 0; i < c; i++) squares += x[row * c + i]! ** 2;
    rstd[row] = 1 / Math.sqrt(squares / c + eps);
    for (let i = 0; i < c; i++) y[row * c + i] = x[row * c + i]! * rstd[row]! * weight[i]!;
  }
  return { y, rstd };
}

/** The angle of pair i: computed in fp32, as the contract says. */
export function ropeAngle(position: number, i: number, dim: number, theta: number): number {
  const { fround } = Math;
  return fround(position * fround(1 / fround(theta ** fround((2 * i) / dim))));
}

/** x [N, heads·D], weight [D], positions [N]. */
export function headNormRope(
  x: Values,
  weight: Values,
  positions: Values,
  n: number,
  heads: number,
  dim: number,
  eps: number,
  theta: number,
): Normed {
  const { y: normed, rstd } = rmsNorm(x, weight, n * heads, dim, eps);
  const y = new Float64Array(normed.length);
  const half = dim / 2;
  for (let row = 0; row < n; row++)
    for (let head = 0; head < heads; head++)
      for (let i = 0; i < half; i++) {
        const at = (row * heads + head) * dim + i;
        const angle = ropeAngle(positions[row]!, i, dim, theta);
        // (low + i·high) · e^{i·angle}
        y[at] = normed[at]! * Math.cos(angle) - normed[at + half]! * Math.sin(angle);
        y[at + half] = normed[at]! * Math.sin(angle) + normed[at + half]! * Math.cos(angle);
      }
  return { y, rstd };
}

const sigmoid = (x: number): number => 1 / (1 + Math.exp(-x));

export function swiglu(gate: Values, up: Values): Float64Array {
  return Float64Array.from({ length: gate.length }, (_, i) => gate[i]! * sigmoid(gate[i]!) * up[i]!);
}

export interface AttentionCase {
  readonly batch: number;
  readonly steps: number;
  /** Rows of k and v a sequence. */
  readonly capacity: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly dim: number;
  /** [batch·steps]; the first key that a query sees. */
  readonly attendFrom?: Values;
  /** [batch]; rows in the cache before the queries. */
  readonly past?: Values;
}

export interface Attended {
  readonly out: Float64Array;
  readonly lse: Float64Array;
}

/** q [batch·steps, heads·D]; k, v [batch·capacity, kvHeads·D]. */
export function attention(q: Values, k: Values, v: Values, c: AttentionCase): Attended {
  const out = new Float64Array(c.batch * c.steps * c.heads * c.dim);
  const lse = new Float64Array(c.batch * c.steps * c.heads);
  const perKv = c.heads / c.kvHeads;
  for (let b = 0; b < c.batch; b++)
    for (let t = 0; t < c.steps; t++)
      for (let h = 0; h < c.heads; h++) {
        const query = b * c.steps + t;
        const last = (c.past?.[b] ?? 0) + t;
        const qAt = (query * c.heads + h) * c.dim;
        const kvAt = (j: number): number =>
          ((b * c.capacity + j) * c.kvHeads + Math.floor(h / perKv)) * c.dim;
        const scores: number[] = [];
        const seen: number[] = [];
        for (let j = c.attendFrom?.[query] ?? 0; j <= last && j < c.capacity; j++) {
          let score = 0;
          for (let d = 0; d < c.dim; d++) score += q[qAt + d]! * k[kvAt(j) + d]!;
          scores.push(score / Math.sqrt(c.dim));
          seen.push(j);
        }
        const largest = Math.max(...scores);
        const weights = scores.map((s) => Math.exp(s - largest));
        const total = weights.reduce((a, w) => a + w, 0);
        lse[query * c.heads + h] = largest + Math.log(total);
        for (let d = 0; d < c.dim; d++)
          out[qAt + d] = seen.reduce((sum, j, i) => sum + (weights[i]! / total) * v[kvAt(j) + d]!, 0);
      }
  return { out, lse };
}

/** scale · Σ over rows with label ≥ 0 of (log Σ exp(logits) − logit[label]); x [N, H], W [V, H]. */
export function crossEntropy(
  x: Values,
  w: Values,
  labels: Values,
  scale: number,
  n: number,
  h: number,
  v: number,
): number {
  const logits = linear(x, w, n, h, v);
  let loss = 0;
  for (let row = 0; row < n; row++) {
    const label = labels[row]!;
    if (label < 0) continue;
    const own = logits.subarray(row * v, (row + 1) * v);
    const largest = own.reduce((a, b) => Math.max(a, b), -Infinity);
    loss += largest + Math.log(own.reduce((sum, logit) => sum + Math.exp(logit - largest), 0)) - own[label]!;
  }
  return loss * scale;
}

export function l1(x: Values, target: Values, scale: number): number {
  let sum = 0;
  for (let i = 0; i < x.length; i++) sum += Math.abs(x[i]! - target[i]!);
  return sum * scale;
}
