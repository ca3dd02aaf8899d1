/** Runs one op on one backend: allocates its operands, loads a one-op program, runs it and reads everything back. */
import {
  openEngine,
  type Engine,
  type EngineOptions,
  type NumericArray,
} from '../../runtime/engine/engine.js';
import type { DType, Program } from '../../runtime/program.js';
import { decode, encode, BF16, F16 } from '../oracle/number-formats.js';
import { dequantise, globalScale, quantise, type Quantised } from '../oracle/nvfp4.js';

/** A tensor's dtype and shape with its contents; plain dtypes hold numbers, nvfp4 its parts. */
export interface Operand {
  readonly dtype: DType;
  readonly shape: readonly number[];
  readonly data: NumericArray | Quantised;
}

const isQuantised = (data: NumericArray | Quantised): data is Quantised => 'qdata' in data;

const size = (shape: readonly number[]): number => shape.reduce((a, b) => a * b, 1);

export const f32 = (shape: readonly number[], values?: ArrayLike<number>): Operand => ({
  dtype: 'f32',
  shape,
  data: values ? Float32Array.from(values) : new Float32Array(size(shape)),
});
export const i32 = (shape: readonly number[], values?: ArrayLike<number>): Operand => ({
  dtype: 'i32',
  shape,
  data: values ? Int32Array.from(values) : new Int32Array(size(shape)),
});
export const u8 = (shape: readonly number[], values?: ArrayLike<number>): Operand => ({
  dtype: 'u8',
  shape,
  data: values ? Uint8Array.from(values) : new Uint8Array(size(shape)),
});
/** Rounds the values to the dtype; an nvfp4 matrix is quantised at two levels. */
export function tensor(dtype: DType, shape: readonly number[], values: ArrayLike<number>): Operand {
  if (dtype === 'f32') return f32(shape, values);
  if (dtype === 'bf16' || dtype === 'f16') {
    const format = dtype === 'bf16' ? BF16 : F16;
    return { dtype, shape, data: Uint16Array.from(values, (x) => encode(format, x)) };
  }
  const amax = Array.from(values).reduce((a, x) => Math.max(a, Math.abs(x)), 0);
  const single = Float32Array.from(values);
  return { dtype: 'nvfp4', shape, data: quantise(single, globalScale(Math.fround(amax))) };
}

/** The values that an operand stands for. */
export function valuesOf({ dtype, data }: Operand): Float64Array {
  if (isQuantised(data)) return dequantise(data);
  if (dtype === 'bf16' || dtype === 'f16')
    return Float64Array.from(data as Uint16Array, (bits) => decode(dtype === 'bf16' ? BF16 : F16, bits));
  return Float64Array.from(data as Float32Array);
}

/** A backend under test. */
export interface Device {
  readonly name: string;
  readonly engine: Engine;
}

/** Opens a CPU backend; `isa` forces an instruction set. Null when this machine does not have it. */
export function openDevice(
  name: string,
  options: Omit<EngineOptions, 'device'>,
  isa?: string,
): Device | null {
  const before = process.env['Q4RUN_CPU_ISA'];
  try {
    if (isa === undefined) delete process.env['Q4RUN_CPU_ISA'];
    else process.env['Q4RUN_CPU_ISA'] = isa;
    return { name, engine: openEngine({ device: 'cpu', ...options }) };
  } catch (error) {
    if ((error as { code?: string }).code === 'Q4512') return null;
    throw error;
  } finally {
    if (before === undefined) delete process.env['Q4RUN_CPU_ISA'];
    else process.env['Q4RUN_CPU_ISA'] = before;
  }
}

/** The reference and every instruction set that this machine has. */
export function openDevices(): Device[] {
  const devices = [
    openDevice('reference', { reference: true }),
    openDevice('portable', { threads: 2 }, 'portable'),
    openDevice('avx2', { threads: 2 }, 'avx2'),
    openDevice('avx512', { threads: 2 }, 'avx512'),
    openDevice('avx512_vnni', { threads: 2 }, 'avx512_vnni'),
  ];
  return devices.filter((device) => device !== null);
}

export interface OpCase {
  readonly op: string;
  /** null is an absent optional operand. */
  readonly inputs?: readonly (Operand | null)[];
  /** Their contents before the run count: in-place and accumulating ops read them. */
  readonly outputs: readonly (Operand | null)[];
  readonly attrs?: Readonly<Record<string, number>>;
}

/** The outputs after the run, in order (absent ones too, as null). */
export async function runOp(
  device: Device,
  { op, inputs = [], outputs, attrs = {} }: OpCase,
): Promise<(Operand | null)[]> {
  const store = device.engine.createStore();
  try {
    const tensors: {
      name: string;
      dtype: DType;
      shape: readonly number[];
      storage: { kind: 'store'; name: string };
    }[] = [];
    const place = (operand: Operand | null): number => {
      if (!operand) return -1;
      const name = `t${tensors.length}`;
      store.allocate(name, operand.dtype, operand.shape);
      if (isQuantised(operand.data)) {
        store.write(name, operand.data.qdata, 'qdata');
        store.write(name, operand.data.scale, 'scale');
        store.write(name, Float32Array.of(operand.data.globalScale), 'global_scale');
      } else {
        store.write(name, operand.data);
      }
      tensors.push({ name, dtype: operand.dtype, shape: operand.shape, storage: { kind: 'store', name } });
      return tensors.length - 1;
    };
    const placed = { inputs: inputs.map(place), outputs: outputs.map(place) };
    const program: Program = {
      version: 1,
      name: op,
      tensors,
      ops: [{ op, ...placed, attrs, scope: 'test', phase: 'forward' }],
      arenaBytes: 0,
    };
    const executable = device.engine.load(program, store);
    try {
      await executable.run();
    } finally {
      executable.dispose();
    }
    return outputs.map((operand, i) => {
      if (!operand) return null;
      const { name } = tensors[placed.outputs[i]!]!;
      if (operand.dtype !== 'nvfp4') return { ...operand, data: store.read(name) };
      const data = {
        qdata: store.read(name, 'qdata') as Uint8Array,
        scale: store.read(name, 'scale') as Uint8Array,
        globalScale: (store.read(name, 'global_scale') as Float32Array)[0]!,
      };
      return { ...operand, data };
    });
  } finally {
    store.dispose();
  }
}

/** Values of the outputs, empty for absent ones. */
export async function run(device: Device, op: OpCase): Promise<Float64Array[]> {
  return (await runOp(device, op)).map((operand) => (operand ? valuesOf(operand) : new Float64Array(0)));
}
