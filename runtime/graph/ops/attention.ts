/** Causal attention with grouped queries, over the rows themselves or over a cache, and its gradient. */
import { traffic } from '../cost.js';
import type { DeviceKind, OpSpec, OpView, Tensor } from '../types.js';
import type { Recorder } from '../recorder.js';

export interface AttentionShape {
  readonly batch: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
}

const ATTRS = ['batch', 'heads', 'kv_heads', 'head_dim'] as const;

const checkShape = (view: OpView, rows: number, keys: number): string | null => {
  const { batch, heads, kv_heads } = view.attrs as { batch: number; heads: number; kv_heads: number };
  if (heads % kv_heads !== 0) return `${heads} heads do not divide into ${kv_heads} key-value heads`;
  if (rows % batch !== 0 || keys % batch !== 0)
    return `${rows} and ${keys} rows do not divide into a batch of ${batch}`;
  return keys < rows ? `there are fewer keys (${keys}) than queries (${rows})` : null;
};

/**
 * Two products of head_dim for each visible key: causal without a cache; with one, how much of it is filled is not known
 * here, so the whole capacity counts.
 */
function forwardFlops(view: OpView, rows: number, keys: number, cached: boolean): number {
  const { batch, heads, head_dim } = view.attrs as { batch: number; heads: number; head_dim: number };
  const visible = cached ? keys / batch : (rows / batch + 1) / 2;
  return 4 * head_dim * heads * rows * visible;
}

export const ATTENTION: OpSpec = {
  name: 'attention',
  signature:
    'q: act[N,heads*head_dim], k: act[S,kv_heads*head_dim], v: act[S,kv_heads*head_dim], attend_from?: i32[N], past?: i32[batch] -> out: act[N,heads*head_dim], lse: f32[N,heads], scratch?: f32[*]',
  attrs: ATTRS,
  check: (view) => {
    const [rows, keys] = [view.inputs[0]!.shape[0]!, view.inputs[1]!.shape[0]!];
    if (!view.inputs[4] && rows !== keys) return 'a cache needs past';
    return checkShape(view, rows, keys);
  },
  scratch: (view, device) => attentionScratch(view, device),
  cost: (view) => ({
    flops: forwardFlops(view, view.inputs[0]!.shape[0]!, view.inputs[1]!.shape[0]!, !!view.inputs[4]),
    bytes: traffic({ ...view, outputs: view.outputs.slice(0, 2) }),
  }),
  gradient(tape, node) {
    const [q, k, v, attendFrom] = node.inputs;
    const [out, lse] = node.outputs;
    const dout = tape.take(out);
    if (!dout || ![q, k, v].some((tensor) => tape.needs(tensor))) return;
    const [dq, dk, dv] = tape
      .at(node)
      .emit(ATTENTION_BACKWARD, [dout, q!, k!, v!, out!, lse!, attendFrom ?? null], { attrs: node.attrs });
    tape.give(q, dq!);
    tape.give(k, dk!);
    tape.give(v, dv!);
  },
};

function attentionScratch(_view: OpView, device: DeviceKind): readonly number[] | null {
  switch (device) {
    case 'cpu':
    case 'cuda':
      return null;
  }
}

export const ATTENTION_BACKWARD: OpSpec = {
  name: 'attention_backward',
  signature:
    'dout: act[N,heads*head_dim], q: act[N,heads*head_dim], k: act[N,kv_heads*head_dim], v: act[N,kv_heads*head_dim], out: act[N,heads*head_dim], lse: f32[N,heads], attend_from?: i32[N] -> dq: act[N,heads*head_dim], dk: act[N,kv_heads*head_dim], dv: act[N,kv_heads*head_dim], scratch?: f32[*]',
  attrs: ATTRS,
  check: (view) => checkShape(view, view.inputs[0]!.shape[0]!, view.inputs[0]!.shape[0]!),
  scratch: (view, device) => backwardScratch(view, device),
  cost: (view) => ({
    // Scores again, then dV, dP, dQ, dK: five products against the forward's two.
    flops: 2.5 * forwardFlops(view, view.inputs[0]!.shape[0]!, view.inputs[0]!.shape[0]!, false),
    bytes: traffic({ ...view, outputs: view.outputs.slice(0, 3) }),
  }),
};

/** delta = Σ dout·out for every row and head. */
function backwardScratch(view: OpView, device: DeviceKind): readonly number[] | null {
  const delta = view.inputs[0]!.shape[0]! * view.attrs['heads']!;
  switch (device) {
    case 'cpu':
    case 'cuda':
      return [delta];
  }
}

/** q act [batch·T, heads·D], k and v act [batch·S, kv_heads·D] → act [batch·T, heads·D]. */
export function attention(
  operands: { q: Tensor; k: Tensor; v: Tensor; attendFrom: Tensor | null; past: Tensor | null },
  shape: AttentionShape,
  at: Recorder,
): Tensor {
  const { q, k, v, attendFrom, past } = operands;
  return at.emitOne(ATTENTION, [q, k, v, attendFrom, past], {
    attrs: { batch: shape.batch, heads: shape.heads, kv_heads: shape.kvHeads, head_dim: shape.headDim },
  });
}
