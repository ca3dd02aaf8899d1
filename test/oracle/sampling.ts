/** The sampler's contract, step by step, with whole sorts and sums in double precision. */

export interface SamplingOptions {
  readonly temperature: number;
  readonly topK: number;
  readonly topP: number;
  readonly minP: number;
  readonly repetitionPenalty: number;
}

export interface Candidate {
  readonly id: number;
  readonly probability: number;
}

export function penalise(logits: ArrayLike<number>, seen: ArrayLike<number>, penalty: number): number[] {
  return Array.from(logits, (logit, id) => {
    if (!seen[id]) return logit;
    return Math.fround(logit > 0 ? logit / Math.fround(penalty) : logit * Math.fround(penalty));
  });
}

const normalise = (candidates: Candidate[]): Candidate[] => {
  const total = candidates.reduce((sum, c) => sum + c.probability, 0);
  return candidates.map(({ id, probability }) => ({ id, probability: probability / total }));
};

/** What survives, by falling probability, ties by id. temperature > 0. */
export function candidates(logits: readonly number[], options: SamplingOptions): Candidate[] {
  const largest = Math.max(...logits);
  let kept = logits.map((logit, id) => ({
    id,
    probability: Math.exp((logit - largest) / options.temperature),
  }));
  kept.sort((a, b) => b.probability - a.probability || a.id - b.id);
  if (options.topK >= 1) kept = kept.slice(0, options.topK);
  kept = normalise(kept);
  if (options.topP < 1) {
    let mass = 0;
    kept = kept.filter((candidate, rank) => {
      const before = mass;
      mass += candidate.probability;
      return rank === 0 || before < options.topP;
    });
  }
  if (options.minP > 0)
    kept = kept.filter((c, rank) => rank === 0 || c.probability >= options.minP * kept[0]!.probability);
  return normalise(kept);
}

/** Inverse CDF; u in [0, 1). */
export function pick(kept: readonly Candidate[], u: number): number {
  let mass = 0;
  for (const { id, probability } of kept) {
    mass += probability;
    if (mass > u) return id;
  }
  return kept.at(-1)!.id;
}
