/** Optimizer, quantisation, filling and decode kernels of the interpreter. NVFP4 weights hold their values. */
import type { Call, Kernel, View } from './interpret.js';

const all = (view: View): number[] => Array.from({ length: view.size }, (_, i) => view.get(i));
const E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6];

/** Nearest of a rising list of values; ties go to the even index, as codes are numbered in order. */
function nearest(values: readonly number[], x: number): number {
  let best = 0;
  values.forEach((value, code) => {
    const [distance, least] = [Math.abs(value - x), Math.abs(values[best]! - x)];
    if (distance < least || (distance === least && code % 2 === 0)) best = code;
  });
  return values[best]!;
}

/** Every finite E4M3FN value from 0 up, in the order of its bits. */
const E4M3 = Array.from({ length: 127 }, (_, bits) => {
  const [exponent, mantissa] = [bits >> 3, bits & 7];
  return exponent === 0 ? mantissa * 2 ** -9 : (1 + mantissa / 8) * 2 ** (exponent - 7);
});

function quantize({ in: [master, amax], out: [weight, changed], attrs }: Call): void {
  const { slot_begin: begin, slot_end: end, changed_slot: slot } = attrs as Record<string, number>;
  const largest = amax ? Math.max(...all(amax).slice(begin, end)) : 0;
  const global = amax ? largest / (448 * 6) || 1 : 1;
  let count = 0;
  for (let block = 0; block < master!.size; block += 16) {
    const values = Array.from({ length: 16 }, (_, i) => master!.get(block + i));
    const scale = nearest(E4M3, Math.max(...values.map(Math.abs)) / 6 / global);
    values.forEach((value, i) => {
      const code = scale === 0 ? 0 : nearest(E2M1, Math.abs(value) / (scale * global));
      const rounded = Math.sign(value) * code * scale * global;
      if (rounded !== weight!.get(block + i)) count++;
      weight!.set(block + i, rounded);
    });
  }
  changed!.set(slot!, count);
}

function adamw({ in: [grad, stats, hyper], out: [master, m, v], attrs }: Call): void {
  if (stats!.get(2) === 0) return;
  const [lr, beta1, beta2, eps, decay, bias1, bias2] = all(hyper!) as [
    number,
    number,
    number,
    number,
    number,
    number,
    number,
  ];
  for (let i = 0; i < grad!.size; i++) {
    const g = grad!.get(i) * stats!.get(1);
    m!.set(i, beta1 * m!.get(i) + (1 - beta1) * g);
    v!.set(i, beta2 * v!.get(i) + (1 - beta2) * g * g);
    if (attrs['decay']) master!.add(i, -lr * decay * master!.get(i));
    master!.add(i, (-lr * (m!.get(i) / bias1)) / (Math.sqrt(v!.get(i) / bias2) + eps));
  }
}

export const UPDATE: Readonly<Record<string, Kernel>> = {
  sum_squares({ in: [x], out: [partials], attrs }) {
    partials!.set(
      attrs['slot']!,
      all(x!).reduce((sum, value) => sum + value * value, 0),
    );
  },
  grad_stats({ in: [partials, loss], out: [stats], attrs }) {
    const norm = Math.sqrt(all(partials!).reduce((a, b) => a + b, 0));
    const limit = attrs['max_norm']!;
    stats!.set(0, norm);
    stats!.set(1, limit === 0 ? 1 : Math.min(1, limit / (norm + 1e-6)));
    stats!.set(2, Number.isFinite(norm) && Number.isFinite(loss!.get(0)) ? 1 : 0);
    stats!.set(3, loss!.get(0));
  },
  adamw,
  adamw_amax(call) {
    adamw(call);
    const [master, , , out] = call.out;
    out!.set(call.attrs['slot']!, Math.max(...all(master!).map(Math.abs)));
  },
  amax({ in: [x], out: [out], attrs }) {
    out!.set(attrs['slot']!, Math.max(...all(x!).map(Math.abs)));
  },
  quantize_nvfp4: quantize,
  dequantize_nvfp4({ in: [weight], out: [y] }) {
    all(weight!).forEach((value, i) => y!.set(i, value));
  },
  /** The machine holds an NVFP4 weight as values; a code stands for each, so codes differ where values do. */
  count_changed({ in: [a, b], out: [out], attrs }) {
    out!.set(attrs['slot']!, all(a!).filter((value, i) => value !== b!.get(i)).length);
  },
  fill({ out: [y], attrs }) {
    y!.fill(attrs['value']!);
  },
  cast({ in: [x], out: [y] }) {
    all(x!).forEach((value, i) => y!.set(i, value));
  },
  /** Not Philox: numbers that depend on the seed, the stream and the element alone. */
  random_normal({ out: [y], attrs }) {
    const { seed_lo: seed, stream, std } = attrs as Record<string, number>;
    for (let i = 0; i < y!.size; i++)
      y!.set(i, std! * Math.sin((seed! + 1) * 12.9 + stream! * 78.2 + i * 37.7) * 1.4);
  },
  /** Greedy only. */
  sample({ in: [logits, sampling], out: [seen, ids], attrs }) {
    const vocabulary = logits!.shape[1]!;
    for (let b = 0; b < ids!.size; b++) {
      if (!attrs['greedy'] && sampling!.get(b * 8) !== 0)
        throw new Error('the interpreter samples greedily only');
      const row = all(logits!).slice(b * vocabulary, (b + 1) * vocabulary);
      const best = row.indexOf(Math.max(...row));
      ids!.set(b, best);
      seen!.set(b * vocabulary + best, 1);
    }
  },
  increment({ out: [x], attrs }) {
    for (let i = 0; i < x!.size; i++) x!.set(i, Math.min(x!.get(i) + attrs['by']!, attrs['max']!));
  },
};
