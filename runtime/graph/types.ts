/**
 * The graph as a value: symbolic tensors, nodes that name a method of native/core/backend.h, and the graph that
 * wiring records, transforms rewrite and lowering turns into a `Program`. Plain data, nothing here computes.
 */
import type { DType, Phase } from '../program.js';
import type { Tape } from './gradient.js';

export type { DType, Phase } from '../program.js';

/** Kinds of device whose scratch needs differ. */
export type DeviceKind = 'cpu' | 'cuda';
/** Activations and their gradients. */
export type Activation = 'f32' | 'bf16';

export interface TensorType {
  readonly dtype: DType;
  readonly shape: readonly number[];
}

/** What memory is for; plans are summed by it. */
export type Purpose = 'weights' | 'masters' | 'moments' | 'gradients' | 'cache' | 'io' | 'taps';

/** A named tensor of the store, as it must be allocated before a program that uses it is loaded. */
export interface StoreTensor extends TensorType {
  readonly name: string;
  readonly purpose: Purpose;
}

/** Where a symbolic tensor lives. Lowering chooses the offsets of the arena ones. */
export type Place =
  | { readonly kind: 'arena' }
  | { readonly kind: 'store'; readonly tensor: StoreTensor; readonly byteOffset: number };

/** A symbolic tensor; its identity is the object. */
export interface Tensor extends TensorType {
  readonly name: string;
  readonly place: Place;
}

/** Shapes, dtypes and attributes of one op: what checks, scratch sizes and costs are computed from. */
export interface OpView {
  readonly op: string;
  readonly inputs: readonly (TensorType | null)[];
  readonly outputs: readonly (TensorType | null)[];
  readonly attrs: Readonly<Record<string, number>>;
}

export interface Node extends OpView {
  readonly inputs: readonly (Tensor | null)[];
  readonly outputs: readonly (Tensor | null)[];
  readonly scope: string;
  readonly phase: Phase;
}

/** Work of one op: floating-point operations, and bytes that must move at least once. */
export interface Cost {
  readonly flops: number;
  readonly bytes: number;
}

/** One op of the contract: one file under ops/ holds everything the graph knows about it. */
export interface OpSpec {
  /** The method of native/core/backend.h. */
  readonly name: string;
  /** Arguments in the order of the contract; see signature.ts for the notation. */
  readonly signature: string;
  /** Attributes that must be given, in the order of the contract. */
  readonly attrs?: readonly string[];
  /** What the signature cannot say; returns what is wrong. */
  readonly check?: (view: OpView) => string | null;
  /** Shape of the f32 scratch that the device needs, null for none; the signature's last output. */
  readonly scratch?: (view: OpView, device: DeviceKind) => readonly number[] | null;
  /** Pairs [output, input] by index: the output may take the input's memory when nothing reads it afterwards. */
  readonly inPlace?: readonly (readonly [number, number])[];
  /** Outputs (by index) that the op also reads: in-place operands, and accumulated ones. */
  readonly modifies?: (view: OpView) => readonly number[];
  readonly cost: (view: OpView) => Cost;
  /** Adds this node's share to the gradients of its inputs. */
  readonly gradient?: (tape: Tape, node: Node) => void;
}

export interface Graph {
  readonly name: string;
  readonly device: DeviceKind;
  readonly activation: Activation;
  readonly nodes: readonly Node[];
  /** What each scope gave: `model.layers.3.self_attn.o_proj` → its output. Taps are chosen by these names. */
  readonly results: ReadonlyMap<string, Tensor>;
}
