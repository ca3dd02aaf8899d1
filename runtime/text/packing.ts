/** Which samples share a row. A row is a list of sample numbers; samples in it stay apart in attention and positions. */

/**
 * First fit: every sample goes, in the given order, into the first row that still has room. Deterministic; a
 * tournament tree over the free room finds that row in logarithmic time.
 * @param order sample numbers; @param lengths tokens of every sample, each ≤ seqLen
 */
export function packFirstFit(
  order: ArrayLike<number>,
  lengths: ArrayLike<number>,
  seqLen: number,
): number[][] {
  const rows: number[][] = [];
  let leaves = 1;
  while (leaves < order.length) leaves *= 2;
  // free[1] is the root: the most room that any row has. Rows that are not opened yet have all of it.
  const free = new Int32Array(2 * leaves).fill(seqLen);
  for (const sample of Array.from(order)) {
    const length = lengths[sample]!;
    let node = 1;
    while (node < leaves) node = free[2 * node]! >= length ? 2 * node : 2 * node + 1;
    (rows[node - leaves] ??= []).push(sample);
    free[node]! -= length;
    for (node >>= 1; node >= 1; node >>= 1) free[node] = Math.max(free[2 * node]!, free[2 * node + 1]!);
  }
  return rows;
}

/** One sample a row. */
export const oneEach = (order: ArrayLike<number>): number[][] => Array.from(order, (sample) => [sample]);
