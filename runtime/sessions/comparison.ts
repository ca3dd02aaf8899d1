/** Judges two observations of the same tokens against bounds, and finds where they part (formats.md §6). */
import { compareLogits, cosine, relativeL2, type LogitsParity } from '../models/parity-metrics.js';
import type { Observation, Watch } from './observation.js';

export interface Thresholds {
  readonly hidden_rel_l2: number;
  readonly logits_rel_l2: number;
  readonly kl_mean: number;
  readonly kl_max: number;
  readonly top1_agreement: number;
  readonly greedy_match: boolean;
}

export interface Comparison {
  readonly ours: Observation;
  readonly baseline: Observation;
  readonly greedyMatch: boolean | null;
  readonly rows: number;
  /** The same two routes, watching the inside of one scope; null when the baseline cannot be watched. */
  readonly inside: ((watch: Watch) => Promise<[Observation, Observation]>) | null;
}

export interface Divergence {
  readonly layer: string;
  /** null: every op inside agrees when it is watched, or the baseline shows only whole layers. */
  readonly op: string | null;
  readonly rel_l2: number;
}

export interface Verdict {
  readonly passed: boolean;
  readonly first_divergence: Divergence | null;
  readonly layers: readonly { readonly name: string; readonly rel_l2: number; readonly cosine: number }[];
  readonly logits: LogitsParity;
  readonly greedy_match: boolean | null;
  /** Not one bit differs. */
  readonly bitwise: boolean;
  /** Rows compared. */
  readonly tokens: number;
  /** Every bound that is broken, in words. */
  readonly broken: readonly string[];
}

/** A worse figure than its bound; NaN is always worse. */
const above = (value: number, bound: number): boolean => !(value <= bound);

async function firstDivergence(
  comparison: Comparison,
  logits: LogitsParity,
  bounds: Thresholds,
): Promise<Divergence | null> {
  for (const [layer, ours] of comparison.ours.taps) {
    const rel_l2 = relativeL2(ours, comparison.baseline.taps.get(layer)!);
    if (!above(rel_l2, bounds.hidden_rel_l2)) continue;
    // The embedding is one op; a layer is looked into.
    if (!layer.startsWith('model.layers.')) return { layer, op: layer, rel_l2 };
    return { layer, op: await divergentOp(comparison, layer, bounds.hidden_rel_l2), rel_l2 };
  }
  if (!above(logits.rel_l2, bounds.logits_rel_l2)) return null;
  return { layer: 'lm_head', op: 'lm_head', rel_l2: logits.rel_l2 };
}

/** The first op inside the layer whose output differs; null when they all agree (the layers before made the difference). */
async function divergentOp(comparison: Comparison, layer: string, bound: number): Promise<string | null> {
  if (!comparison.inside) return null;
  const [ours, baseline] = await comparison.inside({ inside: layer });
  for (const [scope, values] of ours.taps) {
    const other = baseline.taps.get(scope);
    if (other && above(relativeL2(values, other), bound)) return scope;
  }
  return null;
}

/** Every bound that is broken, in words. */
function brokenBounds(
  hidden: number,
  logits: LogitsParity,
  greedyMatch: boolean | null,
  bounds: Thresholds,
): string[] {
  const most = (name: string, value: number, bound: number): string[] =>
    above(value, bound) ? [`${name} ${value.toExponential(2)} > ${bound}`] : [];
  return [
    ...most('hidden_rel_l2', hidden, bounds.hidden_rel_l2),
    ...most('logits_rel_l2', logits.rel_l2, bounds.logits_rel_l2),
    ...most('kl_mean', logits.kl_mean, bounds.kl_mean),
    ...most('kl_max', logits.kl_max, bounds.kl_max),
    ...(logits.top1_agreement >= bounds.top1_agreement
      ? []
      : [`top1_agreement ${logits.top1_agreement} < ${bounds.top1_agreement}`]),
    ...(bounds.greedy_match && greedyMatch === false ? ['the greedy continuations differ'] : []),
  ];
}

export async function judge(
  comparison: Comparison,
  bounds: Thresholds,
  vocabulary: number,
  topK: number,
): Promise<Verdict> {
  const { ours, baseline, greedyMatch, rows } = comparison;
  const layers = [...ours.taps].map(([name, values]) => {
    const other = baseline.taps.get(name)!;
    return { name, rel_l2: relativeL2(values, other), cosine: cosine(values, other) };
  });
  const logits = compareLogits(ours.logits, baseline.logits, vocabulary, topK);
  const worst = layers.reduce((most, { rel_l2 }) => (above(rel_l2, most) ? rel_l2 : most), 0);
  const broken = brokenBounds(worst, logits, greedyMatch, bounds);
  return {
    passed: broken.length === 0,
    first_divergence: await firstDivergence(comparison, logits, bounds),
    layers,
    logits,
    greedy_match: greedyMatch,
    bitwise: worst === 0 && logits.max_abs === 0,
    tokens: rows,
    broken,
  };
}
