/** How much quantising cost: a row for each tensor, and for each family of tensors over all layers. */
import type { Quantised } from '../engine/types.js';

/** As it stands in report.json. */
export type QuantiseRow = {
  readonly name: string;
  readonly elements: number;
  /** 10·log10(Σ x² / Σ (x − decoded)²); null when nothing was lost or there was nothing. */
  readonly sqnr_db: number | null;
  /** √(Σ (x − decoded)² / Σ x²) */
  readonly relative_error: number;
  readonly zero_code_share: number;
  readonly saturated: number;
  readonly floor_blocks: number;
  /** null for a family: its tensors have their own. */
  readonly global_scale: number | null;
};

export interface QuantiseTable {
  readonly tensors: readonly QuantiseRow[];
  readonly families: readonly QuantiseRow[];
}

type Sums = Pick<Quantised, 'elements' | 'signal' | 'noise' | 'zeroCodes' | 'saturated' | 'floorBlocks'>;

function row(name: string, sums: Sums, globalScale: number | null): QuantiseRow {
  const { elements, signal, noise } = sums;
  const ratio = signal > 0 ? noise / signal : 0;
  return {
    name,
    elements,
    sqnr_db: ratio > 0 ? -10 * Math.log10(ratio) : null,
    relative_error: Math.sqrt(ratio),
    zero_code_share: elements > 0 ? sums.zeroCodes / elements : 0,
    saturated: sums.saturated,
    floor_blocks: sums.floorBlocks,
    global_scale: globalScale,
  };
}

const sum = (all: readonly Sums[], pick: (one: Sums) => number): number =>
  all.reduce((total, one) => total + pick(one), 0);

/** `model.layers.3.mlp.up_proj.weight` → `mlp.up_proj` */
export const familyOf = (name: string): string =>
  name.replace(/^model\.layers\.\d+\./, '').replace(/\.weight$/, '');

export function quantiseTable(quantised: readonly Quantised[]): QuantiseTable {
  const families = new Map<string, Quantised[]>();
  for (const one of quantised) {
    const family = familyOf(one.name);
    families.set(family, [...(families.get(family) ?? []), one]);
  }
  const together = (all: readonly Quantised[]): Sums => ({
    elements: sum(all, (one) => one.elements),
    signal: sum(all, (one) => one.signal),
    noise: sum(all, (one) => one.noise),
    zeroCodes: sum(all, (one) => one.zeroCodes),
    saturated: sum(all, (one) => one.saturated),
    floorBlocks: sum(all, (one) => one.floorBlocks),
  });
  const all = families.size > 1 ? [row('all', together(quantised), null)] : [];
  return {
    tensors: quantised.map((one) => row(one.name, one, one.globalScale)),
    families: [...[...families].map(([name, members]) => row(name, together(members), null)), ...all],
  };
}
