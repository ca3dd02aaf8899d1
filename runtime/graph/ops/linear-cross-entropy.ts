/**
 * Mean cross-entropy of x·Wᵀ without ever holding all logits. The op hands out the gradients of its loss in the forward
 * pass, so its gradient rule completes the recorded node instead of adding one.
 */
import { elements, traffic } from '../cost.js';
import type { Recorder } from '../recorder.js';
import type { DeviceKind, OpSpec, OpView, Tensor } from '../types.js';

export const LINEAR_CROSS_ENTROPY: OpSpec = {
  name: 'linear_cross_entropy',
  signature:
    'x: act[N,H], weight: weight[V,H], labels: i32[N], scale: f32[1] -> loss: f32[1], dx?: act[N,H], dweight?: f32|bf16[V,H], scratch: f32[*]',
  attrs: ['accumulate'],
  modifies: (view) => (view.attrs['accumulate'] ? (view.outputs[2] ? [0, 2] : [0]) : []),
  scratch: (view, device) => logitsChunk(view, device),
  cost: (view) => {
    const products = 1 + (view.outputs[1] ? 1 : 0) + (view.outputs[2] ? 1 : 0);
    return {
      flops: products * 2 * view.inputs[0]!.shape[0]! * elements(view.inputs[1]),
      bytes: traffic({ ...view, outputs: view.outputs.slice(0, 3) }),
    };
  },
  gradient(tape, node) {
    const [x, weight] = node.inputs;
    const target = tape.parameterGradient(weight);
    if (!target && !tape.needs(x)) return;
    if (target && target.accumulate !== node.attrs['accumulate'])
      throw tape.bug(
        node,
        'the loss and the gradient of the head must both be overwritten or both be added to',
      );
    // dweight needs dx: it is made from the same chunk.
    const dx = tape.at(node).arena(`${node.scope}.dx`, x!);
    tape.replace(node, {
      ...node,
      outputs: [node.outputs[0]!, dx, target?.tensor ?? null, node.outputs[3]!],
    });
    tape.give(x, dx);
  },
};

/** Bytes that one chunk of logits may take. */
// On a GPU each chunk adds to the fp32 gradient of the head once more, and the product that gives dx, rows × H, fills the
// device from some 8,192 rows on: as many of Qwen3's vocabulary.
const CHUNK_BYTES: Record<DeviceKind, number> = { cpu: 2 ** 26, cuda: 5e9 };

/**
 * f32 [rows, V]: rows of logits in steps of 16, at least 16, at most all; on a GPU after as many as the weight takes in
 * the dtype of x, where it has another: it is converted once for all products.
 */
function logitsChunk(view: OpView, device: DeviceKind): readonly number[] {
  const [x, weight] = [view.inputs[0]!, view.inputs[1]!];
  const [rows, vocabulary, width] = [x.shape[0]!, weight.shape[0]!, weight.shape[1]!];
  const fitting = Math.floor(CHUNK_BYTES[device] / (4 * vocabulary) / 16) * 16;
  const converted = device === 'cuda' && weight.dtype !== x.dtype;
  const weightRows = converted ? Math.ceil((width * (x.dtype === 'bf16' ? 2 : 4)) / 4) : 0;
  return [weightRows + Math.min(rows, Math.max(16, fitting)), vocabulary];
}

/**
 * loss f32 [1] (+)= scale·Σ over the rows with label ≥ 0.
 * x act [N,H], weight [V,H], labels i32 [N], scale f32 [1].
 */
export function linearCrossEntropy(
  operands: { x: Tensor; weight: Tensor; labels: Tensor; scale: Tensor; loss: Tensor },
  accumulate: boolean,
  at: Recorder,
): void {
  const { x, weight, labels, scale, loss } = operands;
  at.emit(LINEAR_CROSS_ENTROPY, [x, weight, labels, scale], {
    attrs: { accumulate: accumulate ? 1 : 0 },
    into: { loss },
  });
}
