/**
 * An independent interpreter of programs in double precision, written from the formulas of native/core/backend.h. The
 * arena is one memory addressed by byte, full of NaN at first: tensors that overlap while both are alive, or that are
 * read before they are written, give wrong numbers here as they would on a device.
 */
import { elementCount, type Program, type ProgramTensor } from '../../runtime/program.js';
import type { StoreTensor } from '../../runtime/graph/types.js';
import { BACKWARD } from './interpret-backward.js';
import { FORWARD } from './interpret-forward.js';
import { UPDATE } from './interpret-update.js';

/** A tensor in memory: elements `stride` apart from `start`. */
export class View {
  readonly size: number;
  constructor(
    private readonly memory: Float64Array,
    private readonly start: number,
    private readonly stride: number,
    readonly shape: readonly number[],
  ) {
    this.size = elementCount(shape);
  }
  get(index: number): number {
    if (!(index >= 0 && index < this.size)) throw new Error(`index ${index} outside [${this.shape.join()}]`);
    return this.memory[this.start + index * this.stride]!;
  }
  set(index: number, value: number): void {
    if (!(index >= 0 && index < this.size)) throw new Error(`index ${index} outside [${this.shape.join()}]`);
    this.memory[this.start + index * this.stride] = value;
  }
  add(index: number, value: number): void {
    this.set(index, this.get(index) + value);
  }
  fill(value: number): void {
    for (let i = 0; i < this.size; i++) this.set(i, value);
  }
}

export interface Call {
  readonly in: readonly (View | null)[];
  readonly out: readonly (View | null)[];
  readonly attrs: Readonly<Record<string, number>>;
}
export type Kernel = (call: Call) => void;

const KERNELS: Readonly<Record<string, Kernel>> = { ...FORWARD, ...BACKWARD, ...UPDATE };
const BYTES = { f32: 4, bf16: 2, f16: 2, i32: 4, u8: 1, nvfp4: 1 } as const;

export class Machine {
  readonly store = new Map<string, Float64Array>();

  /** Takes zeroed tensors; those that exist stay as they are. */
  allocate(tensors: readonly StoreTensor[]): void {
    for (const { name, shape } of tensors)
      if (!this.store.has(name)) this.store.set(name, new Float64Array(elementCount(shape)));
  }

  write(name: string, values: ArrayLike<number>): void {
    const tensor = this.read(name);
    if (tensor.length !== values.length)
      throw new Error(`${name} has ${tensor.length} elements, not ${values.length}`);
    tensor.set(values);
  }

  read(name: string): Float64Array {
    const tensor = this.store.get(name);
    if (!tensor) throw new Error(`no tensor ${name}`);
    return tensor;
  }

  run(program: Program): void {
    const arena = new Float64Array(program.arenaBytes).fill(NaN);
    const view = (tensor: ProgramTensor): View => {
      const { storage, shape, dtype } = tensor;
      if (storage.kind === 'arena') return new View(arena, storage.offset, BYTES[dtype], shape);
      return new View(this.read(storage.name), (storage.byteOffset ?? 0) / BYTES[dtype], 1, shape);
    };
    const views = program.tensors.map(view);
    const pick = (index: number): View | null => (index === -1 ? null : views[index]!);
    for (const op of program.ops) {
      const kernel = KERNELS[op.op];
      if (!kernel) throw new Error(`no kernel for ${op.op}`);
      kernel({ in: op.inputs.map(pick), out: op.outputs.map(pick), attrs: op.attrs });
    }
  }
}

/** Deterministic numbers for tests: a 32-bit xorshift. */
export function randomSource(seed: number): () => number {
  let state = seed | 1;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) / 2 ** 32;
  };
}

/** Roughly normal numbers (the sum of twelve uniform ones). */
export function normals(count: number, std: number, random: () => number): Float64Array {
  return Float64Array.from({ length: count }, () => {
    let sum = -6;
    for (let i = 0; i < 12; i++) sum += random();
    return sum * std;
  });
}
