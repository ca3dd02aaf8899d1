/** Learning-rate schedules: linear warm-up, then one of four shapes. */

export interface ScheduleOptions {
  readonly kind: 'constant' | 'linear' | 'cosine' | 'wsd';
  readonly warmup_steps: number;
  /** Where linear, cosine and wsd end, as a share of the peak. */
  readonly min_ratio: number;
  /** wsd: length of the final linear decay; the stretch between warm-up and decay is constant. */
  readonly decay_steps: number;
}

/** Learning rate of optimizer step `step` (0-based) of `steps`. The first warm-up step is peak/warmup_steps, not 0. */
export function learningRate(peak: number, step: number, steps: number, schedule: ScheduleOptions): number {
  const { kind, warmup_steps: warmup, min_ratio: floor, decay_steps: decay } = schedule;
  if (step < warmup) return (peak * (step + 1)) / warmup;
  if (kind === 'constant') return peak;
  const start = kind === 'wsd' ? Math.max(warmup, steps - decay) : warmup;
  if (step < start) return peak;
  const progress = Math.min(1, (step - start) / Math.max(1, steps - start));
  const shape = kind === 'cosine' ? (1 + Math.cos(Math.PI * progress)) / 2 : 1 - progress;
  return peak * (floor + (1 - floor) * shape);
}
