/** Gradient kernels of the interpreter. */
import type { Call, Kernel, View } from './interpret.js';
import { dot, eachQuery, rotate } from './interpret-forward.js';

/** Gradient of one normed row: dx through `put`, its share of dweight through `weigh`. */
function normRow(
  row: { dy: (i: number) => number; x: (i: number) => number; weight: View; rstd: number; width: number },
  put: (i: number, value: number) => void,
  weigh: (i: number, value: number) => void,
): void {
  const { dy, x, weight, rstd, width } = row;
  let mean = 0;
  for (let i = 0; i < width; i++) mean += (dy(i) * weight.get(i) * x(i) * rstd) / width;
  for (let i = 0; i < width; i++) weigh(i, dy(i) * x(i) * rstd);
  for (let i = 0; i < width; i++) put(i, rstd * (dy(i) * weight.get(i) - x(i) * rstd * mean));
}

function attentionBackward({
  in: [dout, q, k, v, out, lse, attendFrom],
  out: [dq, dk, dv, scratch],
  attrs,
}: Call): void {
  const { head_dim: dim, heads } = attrs as { head_dim: number; heads: number };
  const scale = 1 / Math.sqrt(dim);
  const rows = q!.shape[0]!;
  for (const gradient of [dq!, dk!, dv!]) gradient.fill(0);
  eachQuery({ rows, keys: rows, attendFrom: attendFrom!, past: null, attrs }, (query) => {
    const delta = dot(dout!, query.q, out!, query.q, dim);
    scratch!.set(query.row * heads + query.head, delta);
    for (let j = query.from; j <= query.to; j++) {
      const kv = query.kv(j);
      const p = Math.exp(dot(q!, query.q, k!, kv, dim) * scale - lse!.get(query.row * heads + query.head));
      const ds = p * (dot(dout!, query.q, v!, kv, dim) - delta) * scale;
      for (let i = 0; i < dim; i++) {
        dv!.add(kv + i, p * dout!.get(query.q + i));
        dq!.add(query.q + i, ds * k!.get(kv + i));
        dk!.add(kv + i, ds * q!.get(query.q + i));
      }
    }
  });
}

export const BACKWARD: Readonly<Record<string, Kernel>> = {
  embedding_backward({ in: [dy, ids], out: [dtable], attrs }) {
    const width = dy!.shape[1]!;
    if (!attrs['accumulate']) dtable!.fill(0);
    for (let n = 0; n < ids!.size; n++)
      for (let i = 0; i < width; i++) dtable!.add(ids!.get(n) * width + i, dy!.get(n * width + i));
  },
  rms_norm_backward({ in: [dy, x, weight, rstd, dresidual], out: [dx, dweight, scratch], attrs }) {
    const width = x!.shape[1]!;
    if (!attrs['accumulate']) dweight?.fill(0);
    scratch?.fill(NaN);
    for (let n = 0; n < x!.shape[0]!; n++) {
      const base = n * width;
      const at = (view: View) => (i: number) => view.get(base + i);
      normRow(
        { dy: at(dy!), x: at(x!), weight: weight!, rstd: rstd!.get(n), width },
        (i, value) => dx!.set(base + i, value + (dresidual?.get(base + i) ?? 0)),
        (i, value) => dweight?.add(i, value),
      );
    }
  },
  head_norm_rope_backward({ in: [dy, x, weight, rstd, positions], out: [dx, dweight, scratch], attrs }) {
    const { head_dim: dim, theta } = attrs as { head_dim: number; theta: number };
    const heads = x!.shape[1]! / dim;
    if (!attrs['accumulate']) dweight?.fill(0);
    scratch?.fill(NaN);
    for (let h = 0; h < x!.shape[0]! * heads; h++) {
      const base = h * dim;
      const turned = Array.from({ length: dim }, (_, i) => dy!.get(base + i));
      rotate(turned, positions!.get(Math.floor(h / heads)), theta, -1);
      normRow(
        {
          dy: (i) => turned[i]!,
          x: (i) => x!.get(base + i),
          weight: weight!,
          rstd: rstd!.get(h),
          width: dim,
        },
        (i, value) => dx!.set(base + i, value),
        (i, value) => dweight?.add(i, value),
      );
    }
  },
  linear_dgrad({ in: [dy, weight], out: [dx], attrs }) {
    const [outputs, width] = [weight!.shape[0]!, weight!.shape[1]!];
    if (!attrs['accumulate']) dx!.fill(0);
    for (let n = 0; n < dy!.shape[0]!; n++)
      for (let o = 0; o < outputs; o++)
        for (let i = 0; i < width; i++)
          dx!.add(n * width + i, dy!.get(n * outputs + o) * weight!.get(o * width + i));
  },
  linear_wgrad({ in: [dy, x], out: [dweight], attrs }) {
    const [outputs, width] = [dy!.shape[1]!, x!.shape[1]!];
    if (!attrs['accumulate']) dweight!.fill(0);
    for (let n = 0; n < dy!.shape[0]!; n++)
      for (let o = 0; o < outputs; o++)
        for (let i = 0; i < width; i++)
          dweight!.add(o * width + i, dy!.get(n * outputs + o) * x!.get(n * width + i));
  },
  attention_backward: attentionBackward,
  swiglu_backward({ in: [dy, gate, up], out: [dgate, dup] }) {
    for (let i = 0; i < dy!.size; i++) {
      const [d, g, u] = [dy!.get(i), gate!.get(i), up!.get(i)];
      const sigmoid = 1 / (1 + Math.exp(-g));
      dup!.set(i, d * g * sigmoid);
      dgate!.set(i, d * u * sigmoid * (1 + g * (1 - sigmoid)));
    }
  },
};
