/** Quantising to NVFP4 and back, and counting what changed. */
import { elementwise, elements, payloadBytes } from '../cost.js';
import type { Recorder } from '../recorder.js';
import type { OpSpec, Tensor } from '../types.js';

const inVector = (slot: number, length: number): boolean => slot >= 0 && slot < length;

export const AMAX: OpSpec = {
  name: 'amax',
  signature: 'x: f32|bf16|f16[*] -> out: f32[P]',
  attrs: ['slot'],
  check: (view) =>
    inVector(view.attrs['slot']!, view.outputs[0]!.shape[0]!) ? null : 'the slot lies outside its vector',
  modifies: () => [0],
  cost: (view) => ({ flops: elements(view.inputs[0]), bytes: payloadBytes(view.inputs[0]) + 4 }),
};

export const QUANTIZE_NVFP4: OpSpec = {
  name: 'quantize_nvfp4',
  signature: 'master: f32|bf16[O,K], amax?: f32[A] -> weight: nvfp4[O,K], changed: i32[P]',
  attrs: ['slot_begin', 'slot_end', 'changed_slot'],
  check: (view) => {
    const { slot_begin: begin, slot_end: end, changed_slot: slot } = view.attrs as Record<string, number>;
    const amax = view.inputs[1];
    if (amax && !(begin! >= 0 && begin! < end! && end! <= amax.shape[0]!))
      return 'the slots lie outside amax';
    return inVector(slot!, view.outputs[1]!.shape[0]!) ? null : 'the changed slot lies outside its vector';
  },
  // The old codes are compared with the new ones, and one slot of many is written.
  modifies: () => [0, 1],
  cost: (view) => ({
    flops: 4 * elements(view.inputs[0]),
    bytes: payloadBytes(view.inputs[0]) + 2 * payloadBytes(view.outputs[0]),
  }),
};

export const DEQUANTIZE_NVFP4: OpSpec = {
  name: 'dequantize_nvfp4',
  signature: 'weight: nvfp4[O,K] -> y: f32|bf16[O,K]',
  cost: elementwise(2),
};

export const COUNT_CHANGED: OpSpec = {
  name: 'count_changed',
  signature: 'a: nvfp4[O,K], b: nvfp4[O,K] -> out: i32[P]',
  attrs: ['slot'],
  check: (view) =>
    inVector(view.attrs['slot']!, view.outputs[0]!.shape[0]!) ? null : 'the slot lies outside its vector',
  modifies: () => [0],
  cost: (view) => ({
    flops: 4 * elements(view.inputs[0]),
    bytes: payloadBytes(view.inputs[0]) + payloadBytes(view.inputs[1]),
  }),
};

/** out[slot] = max |x|. */
export function amax(x: Tensor, slot: number, out: Tensor, at: Recorder): void {
  at.emit(AMAX, [x], { attrs: { slot }, into: { out } });
}

/** Two-level with `amax` (the largest of its slots [begin, end)), single-level without. */
export function quantize(
  operands: { master: Tensor; amax: Tensor | null; weight: Tensor; changed: Tensor },
  slots: { begin: number; end: number; changed: number },
  at: Recorder,
): void {
  at.emit(QUANTIZE_NVFP4, [operands.master, operands.amax], {
    attrs: { slot_begin: slots.begin, slot_end: slots.end, changed_slot: slots.changed },
    into: { weight: operands.weight, changed: operands.changed },
  });
}

export function dequantize(weight: Tensor, y: Tensor, at: Recorder): void {
  at.emit(DEQUANTIZE_NVFP4, [weight], { into: { y } });
}

/** out[slot] = codes of a and b that differ; scales do not count. */
export function countChanged(a: Tensor, b: Tensor, slot: number, out: Tensor, at: Recorder): void {
  at.emit(COUNT_CHANGED, [a, b], { attrs: { slot }, into: { out } });
}
