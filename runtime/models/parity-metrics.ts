/** The figures of the parity gate (formats.md §6): how far two sets of hidden states or logits are apart. */

/** ‖a − reference‖ / ‖reference‖, accumulated in double; NaN never hides (a NaN anywhere gives NaN). */
export function relativeL2(ours: Float32Array, reference: Float32Array): number {
  let difference = 0;
  let norm = 0;
  for (let i = 0; i < reference.length; i++) {
    const r = reference[i]!;
    const d = ours[i]! - r;
    difference += d * d;
    norm += r * r;
  }
  if (difference === 0) return 0;
  return norm === 0 ? Infinity : Math.sqrt(difference / norm);
}

/** Cosine of the angle between two vectors; 1 when both are zero. */
export function cosine(ours: Float32Array, reference: Float32Array): number {
  let dot = 0;
  let a = 0;
  let b = 0;
  for (let i = 0; i < reference.length; i++) {
    const x = ours[i]!;
    const y = reference[i]!;
    dot += x * y;
    a += x * x;
    b += y * y;
  }
  return a === 0 && b === 0 ? 1 : dot / Math.sqrt(a * b);
}

export function maxAbsoluteDifference(ours: Float32Array, reference: Float32Array): number {
  let worst = 0;
  for (let i = 0; i < reference.length; i++) {
    const d = Math.abs(ours[i]! - reference[i]!);
    if (!(d <= worst)) worst = d;
  }
  return worst;
}

/** log(Σ exp) of one row, in double. */
function logSumExp(row: Float32Array): number {
  let top = -Infinity;
  for (const x of row) if (x > top) top = x;
  let sum = 0;
  for (const x of row) sum += Math.exp(x - top);
  return top + Math.log(sum);
}

/** Index of the largest element; the lowest index on a tie. */
export function argmax(row: Float32Array): number {
  let best = 0;
  for (let i = 1; i < row.length; i++) if (row[i]! > row[best]!) best = i;
  return best;
}

/** Indices of the k largest, falling; ties by index. */
export function topK(row: Float32Array, k: number): number[] {
  const top: number[] = [];
  for (let i = 0; i < row.length; i++) {
    if (top.length === k && row[i]! <= row[top[k - 1]!]!) continue;
    let at = top.length;
    while (at > 0 && row[i]! > row[top[at - 1]!]!) at--;
    top.splice(at, 0, i);
    if (top.length > k) top.pop();
  }
  return top;
}

export interface LogitsParity {
  readonly rel_l2: number;
  /** KL(reference‖ours) over the vocabulary, in nats. */
  readonly kl_mean: number;
  readonly kl_max: number;
  /** Share of rows whose most likely token is the same, or within a tie of `tieBand` in the reference. */
  readonly top1_agreement: number;
  /** Mean share of the reference's k most likely tokens that are among ours. */
  readonly top_k_overlap: number;
  readonly max_abs: number;
}

/** Compares logits [rows, V]. Two tokens whose reference logits differ by less than `tieBand` count as a tie. */
export function compareLogits(
  ours: Float32Array,
  reference: Float32Array,
  vocabulary: number,
  k: number,
  tieBand = 1e-5,
): LogitsParity {
  const rows = reference.length / vocabulary;
  let klSum = 0;
  let klMax = 0;
  let agree = 0;
  let overlap = 0;
  for (let r = 0; r < rows; r++) {
    const o = ours.subarray(r * vocabulary, (r + 1) * vocabulary);
    const f = reference.subarray(r * vocabulary, (r + 1) * vocabulary);
    const zo = logSumExp(o);
    const zf = logSumExp(f);
    let kl = 0;
    for (let i = 0; i < vocabulary; i++) {
      const logP = f[i]! - zf;
      kl += Math.exp(logP) * (logP - (o[i]! - zo));
    }
    klSum += kl;
    if (!(kl <= klMax)) klMax = kl;
    const topOurs = topK(o, k);
    const topReference = topK(f, k);
    if (f[topReference[0]!]! - f[topOurs[0]!]! <= tieBand) agree++;
    overlap += topReference.filter((i) => topOurs.includes(i)).length / topReference.length;
  }
  return {
    rel_l2: relativeL2(ours, reference),
    kl_mean: klSum / rows,
    kl_max: klMax,
    top1_agreement: agree / rows,
    top_k_overlap: overlap / rows,
    max_abs: maxAbsoluteDifference(ours, reference),
  };
}
