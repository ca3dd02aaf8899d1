/** Forward and loss kernels of the interpreter. */
import type { Call, Kernel, View } from './interpret.js';

const rowsAndWidth = (view: View): [number, number] => [view.shape[0]!, view.size / view.shape[0]!];

/** Normalises `width` elements from `base`; returns rstd. */
function normRow(
  x: View,
  weight: View,
  base: number,
  width: number,
  eps: number,
  y: (i: number, v: number) => void,
): number {
  let sum = 0;
  for (let i = 0; i < width; i++) sum += x.get(base + i) ** 2;
  const rstd = 1 / Math.sqrt(sum / width + eps);
  for (let i = 0; i < width; i++) y(i, x.get(base + i) * rstd * weight.get(i));
  return rstd;
}

function rmsNorm(x: View, weight: View, eps: number, y: View, rstd: View): void {
  const [rows, width] = rowsAndWidth(x);
  for (let n = 0; n < rows; n++)
    rstd.set(
      n,
      normRow(x, weight, n * width, width, eps, (i, value) => y.set(n * width + i, value)),
    );
}

/** Rotates pairs (i, i + D/2) of one head by position·theta^(−2i/D); `sign` −1 turns back. */
export function rotate(values: number[], position: number, theta: number, sign = 1): void {
  const half = values.length / 2;
  for (let i = 0; i < half; i++) {
    const angle = sign * position * theta ** (-i / half);
    const [low, high] = [values[i]!, values[i + half]!];
    values[i] = low * Math.cos(angle) - high * Math.sin(angle);
    values[i + half] = high * Math.cos(angle) + low * Math.sin(angle);
  }
}

export const dot = (a: View, aBase: number, b: View, bBase: number, n: number): number => {
  let sum = 0;
  for (let i = 0; i < n; i++) sum += a.get(aBase + i) * b.get(bBase + i);
  return sum;
};

/** Visits, for every query and head, its visible keys. */
export function eachQuery(
  call: { rows: number; keys: number; attendFrom: View | null; past: View | null; attrs: Call['attrs'] },
  visit: (query: {
    q: number;
    kv: (j: number) => number;
    from: number;
    to: number;
    row: number;
    head: number;
  }) => void,
): void {
  const { batch, heads, kv_heads: kvHeads, head_dim: dim } = call.attrs as Record<string, number>;
  const [tokens, capacity] = [call.rows / batch!, call.keys / batch!];
  for (let b = 0; b < batch!; b++)
    for (let t = 0; t < tokens; t++)
      for (let head = 0; head < heads!; head++) {
        const row = b * tokens + t;
        const group = Math.floor(head / (heads! / kvHeads!));
        visit({
          q: (row * heads! + head) * dim!,
          kv: (j) => ((b * capacity + j) * kvHeads! + group) * dim!,
          from: call.attendFrom?.get(row) ?? 0,
          to: (call.past?.get(b) ?? 0) + t,
          row,
          head,
        });
      }
}

function attention({ in: [q, k, v, attendFrom, past], out: [out, lse], attrs }: Call): void {
  const dim = attrs['head_dim']!;
  const rows = q!.shape[0]!;
  eachQuery({ rows, keys: k!.shape[0]!, attendFrom: attendFrom!, past: past!, attrs }, (query) => {
    const scores: number[] = [];
    for (let j = query.from; j <= query.to; j++)
      scores.push(dot(q!, query.q, k!, query.kv(j), dim) / Math.sqrt(dim));
    const top = Math.max(...scores);
    const total = scores.reduce((sum, score) => sum + Math.exp(score - top), 0);
    lse!.set(query.row * attrs['heads']! + query.head, top + Math.log(total));
    for (let i = 0; i < dim; i++) {
      let sum = 0;
      scores.forEach((score, index) => {
        sum += (Math.exp(score - top) / total) * v!.get(query.kv(query.from + index) + i);
      });
      out!.set(query.q + i, sum);
    }
  });
}

function crossEntropy({
  in: [x, weight, labels, scale],
  out: [loss, dx, dweight, scratch],
  attrs,
}: Call): void {
  const [rows, width] = rowsAndWidth(x!);
  const vocabulary = weight!.shape[0]!;
  scratch!.fill(NaN);
  if (!attrs['accumulate']) {
    loss!.set(0, 0);
    dweight?.fill(0);
  }
  for (let n = 0; n < rows; n++) {
    for (let i = 0; i < width; i++) dx?.set(n * width + i, 0);
    const label = labels!.get(n);
    if (label < 0) continue;
    const logits = Array.from({ length: vocabulary }, (_, o) =>
      dot(x!, n * width, weight!, o * width, width),
    );
    const top = Math.max(...logits);
    const lse = top + Math.log(logits.reduce((sum, logit) => sum + Math.exp(logit - top), 0));
    loss!.add(0, scale!.get(0) * (lse - logits[label]!));
    logits.forEach((logit, o) => {
      const gradient = scale!.get(0) * (Math.exp(logit - lse) - (o === label ? 1 : 0));
      for (let i = 0; i < width; i++) {
        dx?.add(n * width + i, gradient * weight!.get(o * width + i));
        dweight?.add(o * width + i, gradient * x!.get(n * width + i));
      }
    });
  }
}

export const FORWARD: Readonly<Record<string, Kernel>> = {
  embedding({ in: [table, ids], out: [y] }) {
    const [rows, width] = rowsAndWidth(y!);
    for (let n = 0; n < rows; n++)
      for (let i = 0; i < width; i++) y!.set(n * width + i, table!.get(ids!.get(n) * width + i));
  },
  rms_norm({ in: [x, weight], out: [y, rstd], attrs }) {
    rmsNorm(x!, weight!, attrs['eps']!, y!, rstd!);
  },
  add_rms_norm({ in: [x, branch, weight], out: [sum, y, rstd], attrs }) {
    for (let i = 0; i < x!.size; i++) sum!.set(i, x!.get(i) + branch!.get(i));
    rmsNorm(sum!, weight!, attrs['eps']!, y!, rstd!);
  },
  head_norm_rope({ in: [x, weight, positions], out: [y, rstd], attrs }) {
    const { head_dim: dim, eps, theta } = attrs as Record<string, number>;
    const heads = x!.shape[1]! / dim!;
    for (let h = 0; h < x!.shape[0]! * heads; h++) {
      const head: number[] = [];
      rstd!.set(
        h,
        normRow(x!, weight!, h * dim!, dim!, eps!, (i, value) => void (head[i] = value)),
      );
      rotate(head, positions!.get(Math.floor(h / heads)), theta!);
      head.forEach((value, i) => y!.set(h * dim! + i, value));
    }
  },
  linear({ in: [x, weight], out: [y] }) {
    const [rows, width] = rowsAndWidth(x!);
    const outputs = weight!.shape[0]!;
    for (let n = 0; n < rows; n++)
      for (let o = 0; o < outputs; o++)
        y!.set(n * outputs + o, dot(x!, n * width, weight!, o * width, width));
  },
  attention,
  kv_append({ in: [k, v, past], out: [kCache, vCache], attrs }) {
    const batch = attrs['batch']!;
    const [rows, width] = rowsAndWidth(k!);
    const [tokens, capacity] = [rows / batch, kCache!.shape[0]! / batch];
    for (let row = 0; row < rows; row++) {
      const b = Math.floor(row / tokens);
      const to = past!.get(b) + (row % tokens);
      if (to >= capacity) continue;
      for (let i = 0; i < width; i++) {
        kCache!.set((b * capacity + to) * width + i, k!.get(row * width + i));
        vCache!.set((b * capacity + to) * width + i, v!.get(row * width + i));
      }
    }
  },
  swiglu({ in: [gate, up], out: [y] }) {
    for (let i = 0; i < gate!.size; i++)
      y!.set(i, (gate!.get(i) / (1 + Math.exp(-gate!.get(i)))) * up!.get(i));
  },
  add({ in: [a, b], out: [y] }) {
    for (let i = 0; i < a!.size; i++) y!.set(i, a!.get(i) + b!.get(i));
  },
  gather_rows({ in: [x, rows], out: [y] }) {
    const width = x!.shape[1]!;
    for (let m = 0; m < rows!.size; m++)
      for (let i = 0; i < width; i++) y!.set(m * width + i, x!.get(rows!.get(m) * width + i));
  },
  linear_cross_entropy: crossEntropy,
  l1_loss({ in: [x, target, scale], out: [loss, dx], attrs }) {
    if (!attrs['accumulate']) loss!.set(0, 0);
    for (let i = 0; i < x!.size; i++) {
      const difference = x!.get(i) - target!.get(i);
      loss!.add(0, scale!.get(0) * Math.abs(difference));
      dx?.set(i, scale!.get(0) * Math.sign(difference));
    }
  },
};
