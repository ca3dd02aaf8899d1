/** Programs of a few ops, for tests of the engine itself. */
import type { DType, Program, ProgramOp, ProgramTensor } from '../../runtime/program.js';

type Line = Pick<ProgramOp, 'op' | 'inputs' | 'outputs'> & { readonly attrs?: Record<string, number> };

export const inStore = (name: string, dtype: DType, shape: readonly number[]): ProgramTensor => ({
  name,
  dtype,
  shape,
  storage: { kind: 'store', name },
});

export const inArena = (name: string, offset: number, shape: readonly number[]): ProgramTensor => ({
  name,
  dtype: 'f32',
  shape,
  storage: { kind: 'arena', offset },
});

export const program = (
  tensors: readonly ProgramTensor[],
  ops: readonly Line[],
  arenaBytes = 0,
): Program => ({
  version: 1,
  name: 'test',
  tensors,
  ops: ops.map((line) => ({ attrs: {}, scope: 'test', phase: 'forward', ...line })),
  arenaBytes,
});

/** ids[row] += 1: a decode loop whose tokens count up. */
export const counter = (rows: number): Program =>
  program(
    [inStore('ids', 'i32', [rows])],
    [{ op: 'increment', inputs: [], outputs: [0], attrs: { by: 1, max: 1_000_000 } }],
  );

/** y = x·Wᵀ, `times` times: a program that takes a while. */
export const slow = (size: number, times: number): Program =>
  program(
    [inStore('x', 'f32', [size, size]), inStore('w', 'f32', [size, size]), inStore('y', 'f32', [size, size])],
    Array.from({ length: times }, () => ({ op: 'linear', inputs: [0, 1], outputs: [2] })),
  );
