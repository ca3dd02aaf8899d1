/**
 * Programs: the contract between the graph (which derives them) and the engine (which runs them). Plain data,
 * JSON-serialisable, printable and diffable. Native code checks one once, when it is loaded.
 */

/** Element types of tensors in programs; `nvfp4` is a matrix [out, in] of codes, block scales and a global scale. */
export type DType = 'f32' | 'bf16' | 'f16' | 'i32' | 'u8' | 'nvfp4';

/** Where a tensor lives: at a planned offset of the program's arena, or in a named tensor of the store. */
export type Storage =
  | { readonly kind: 'arena'; readonly offset: number }
  | {
      readonly kind: 'store';
      readonly name: string;
      /** into the named tensor */ readonly byteOffset?: number;
    };

export interface ProgramTensor {
  readonly name: string;
  readonly dtype: DType;
  readonly shape: readonly number[];
  readonly storage: Storage;
}

/** What part of a step an op belongs to; profiles and reports are grouped by it. */
export type Phase = 'forward' | 'loss' | 'backward' | 'optimizer' | 'sample';

export interface ProgramOp {
  /** A method of native/core/backend.h. */
  readonly op: string;
  /** Indices into `tensors`, in the order of the contract; -1 is an absent optional tensor. */
  readonly inputs: readonly number[];
  readonly outputs: readonly number[];
  /** Numbers only; booleans are 0 and 1. */
  readonly attrs: Readonly<Record<string, number>>;
  /** Scope in the wiring: `model.layers.3.self_attn.o_proj`. */
  readonly scope: string;
  readonly phase: Phase;
}

export interface Program {
  readonly version: 1;
  readonly name: string;
  readonly tensors: readonly ProgramTensor[];
  readonly ops: readonly ProgramOp[];
  /** Bytes of the arena: the peak of everything that is not in the store. */
  readonly arenaBytes: number;
}

/** Every tensor, and each part of an NVFP4 tensor, starts at a multiple of this (native/core/tensor.h). */
export const ALIGNMENT = 256;
/** Elements of one NVFP4 block along the input dimension. */
export const BLOCK = 16;

const ELEMENT_BYTES: Record<Exclude<DType, 'nvfp4'>, number> = { f32: 4, bf16: 2, f16: 2, i32: 4, u8: 1 };

export const alignUp = (bytes: number): number => Math.ceil(bytes / ALIGNMENT) * ALIGNMENT;

export const elementCount = (shape: readonly number[]): number => shape.reduce((a, b) => a * b, 1);

/** Bytes a tensor takes in a store or arena, aligned; the same rule as native/core/tensor.h. */
export function tensorBytes(dtype: DType, shape: readonly number[]): number {
  const n = elementCount(shape);
  if (dtype === 'nvfp4') return alignUp(n / 2) + alignUp(n / BLOCK) + ALIGNMENT;
  return alignUp(n * ELEMENT_BYTES[dtype]);
}
