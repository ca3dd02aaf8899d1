/** Bytes and costs that ops share. */
import { BLOCK, elementCount } from '../program.js';
import type { Cost, OpView, TensorType } from './types.js';

const ELEMENT_BYTES = { f32: 4, bf16: 2, f16: 2, i32: 4, u8: 1 } as const;

/** Bytes of the elements themselves, without padding. */
export function payloadBytes(type: TensorType | null | undefined): number {
  if (!type) return 0;
  const n = elementCount(type.shape);
  return type.dtype === 'nvfp4' ? n / 2 + n / BLOCK + 4 : n * ELEMENT_BYTES[type.dtype];
}

/** Elements of a tensor, 0 when it is absent. */
export const elements = (type: TensorType | null | undefined): number =>
  type ? elementCount(type.shape) : 0;

/** Every operand moved once; outputs in `modified` are read too. Scratch is left out: it may stay in a cache. */
export function traffic(view: OpView, modified: readonly number[] = []): number {
  const inputs = view.inputs.reduce((sum, type) => sum + payloadBytes(type), 0);
  const outputs = view.outputs.reduce((sum, type) => sum + payloadBytes(type), 0);
  return inputs + outputs + modified.reduce((sum, index) => sum + payloadBytes(view.outputs[index]), 0);
}

/** An op bound by memory: `perElement` operations on each element of its first input (or output). */
export const elementwise =
  (perElement: number, modified: readonly number[] = []) =>
  (view: OpView): Cost => ({
    flops: perElement * elements(view.inputs[0] ?? view.outputs[0]),
    bytes: traffic(view, modified),
  });

/** Outputs by index when the op's `accumulate` is set. */
export const whenAccumulating =
  (...outputs: number[]) =>
  (view: OpView): readonly number[] =>
    view.attrs['accumulate'] ? outputs.filter((index) => view.outputs[index]) : [];
