/** Programs of a few ops, for tests of the engine itself. */
import type { Engine, Store } from '../../runtime/engine/engine.js';
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

/**
 * Calls `body` once while a program has the device: within a callback of a decode loop of 100 steps. The loop runs only a few
 * ahead of its callbacks, so it cannot end before that. Leaves `ids`, counted up to 100, in the store.
 */
export async function whileRunning(engine: Engine, store: Store, body: () => void): Promise<void> {
  store.allocate('ids', 'i32', [1]);
  const run = engine.load(counter(1), store);
  let called = false;
  const onToken = (): void => {
    if (called) return;
    called = true;
    body();
  };
  try {
    await run.decode({ tokens: 'ids', maxTokens: 100, stopTokens: [], onToken });
  } finally {
    run.dispose();
  }
}

/** y = x·Wᵀ, `times` times: a program that takes a while. */
export const slow = (size: number, times: number): Program =>
  program(
    [inStore('x', 'f32', [size, size]), inStore('w', 'f32', [size, size]), inStore('y', 'f32', [size, size])],
    Array.from({ length: times }, () => ({ op: 'linear', inputs: [0, 1], outputs: [2] })),
  );
