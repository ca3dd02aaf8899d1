/** Where the time of a profiled run went, per op and per layer, against what the device can do. */
import type { Engine, OpTime } from '../engine/types.js';
import { lower } from '../graph/lower.js';
import { add } from '../graph/ops/add.js';
import { linear } from '../graph/ops/linear.js';
import { Recorder } from '../graph/recorder.js';
import type { MemoryPlan } from '../graph/memory-plan.js';
import { opCosts } from '../graph/summary.js';
import type { Activation, Cost, Tensor } from '../graph/types.js';
import { blockOf } from '../models/qwen3.js';
import type { Program } from '../program.js';

export type ProfiledOp = OpTime & Cost;

/** What the device was measured to do, in the same run. */
export interface Roofs {
  /** Reading and writing together. */
  readonly bytes_per_second: number;
  /** Of a large square product in the activation dtype. */
  readonly flops_per_second: number;
}

export interface ProfileRow {
  /** The op, or the layer. */
  readonly name: string;
  readonly phase: string;
  readonly calls: number;
  readonly seconds: number;
  readonly share: number;
  readonly flops: number;
  readonly bytes: number;
  /** The least time that the roofs allow, over the time taken. */
  readonly roof: number;
}

export interface Profile {
  readonly roofs: Roofs;
  readonly phases: Readonly<Record<string, number>>;
  readonly ops: readonly ProfileRow[];
  readonly layers: readonly ProfileRow[];
}

/** Times of one run of a program, with the work of each op. */
export function withCosts(program: Program, ops: readonly OpTime[]): ProfiledOp[] {
  const costs = opCosts(program);
  return ops.map((op) => ({ ...op, ...costs[op.index]! }));
}

const RUNS = 5;

/** Times a large sum and a large product: the roofs that fractions are of. */
export async function measureRoofs(engine: Engine, activation: Activation): Promise<Roofs> {
  const cuda = engine.device.kind === 'cuda';
  const best = async (
    record: (at: Recorder, tensor: (name: string, shape: number[]) => Tensor) => void,
  ): Promise<Cost & { seconds: number }> => {
    const store = engine.createStore();
    try {
      const at = Recorder.start(engine.device.kind, activation);
      record(at, (name, shape) => at.stored({ name, dtype: activation, shape, purpose: 'io' }));
      const { program, tensors } = lower(at.finish('roof'));
      for (const { name, dtype, shape } of tensors) store.allocate(name, dtype, shape);
      const executable = engine.load(program, store);
      let seconds = Infinity;
      for (let i = 0; i < RUNS; i++) {
        const { ops } = await executable.run({ profile: true });
        seconds = Math.min(seconds, ops![0]!.seconds);
      }
      executable.dispose();
      return { ...opCosts(program)[0]!, seconds };
    } finally {
      store.dispose();
    }
  };
  const rows = cuda ? 1 << 15 : 1 << 12;
  const side = cuda ? 8192 : 1024;
  const copy = await best((at, tensor) => {
    add(tensor('a', [rows, 4096]), tensor('b', [rows, 4096]), at);
  });
  const product = await best((at, tensor) => {
    linear(tensor('w', [side, side]))(tensor('x', [side, side]), at);
  });
  return {
    bytes_per_second: copy.bytes / copy.seconds,
    flops_per_second: product.flops / product.seconds,
  };
}

/** Seconds by phase, in the order in which the phases ran. */
export function secondsByPhase(ops: readonly OpTime[]): Record<string, number> {
  const phases: Record<string, number> = {};
  for (const { phase, seconds } of ops) phases[phase] = (phases[phase] ?? 0) + seconds;
  return phases;
}

/** Sums ops that have one key; most time first. */
function sumBy(ops: readonly ProfiledOp[], roofs: Roofs, name: (op: ProfiledOp) => string): ProfileRow[] {
  const total = ops.reduce((sum, { seconds }) => sum + seconds, 0);
  const rows = new Map<string, ProfileRow & { least: number }>();
  for (const op of ops) {
    const key = `${op.phase} ${name(op)}`;
    const row = rows.get(key);
    // Each op by itself is bound by its bytes or by its arithmetic.
    const least =
      (row?.least ?? 0) + Math.max(op.flops / roofs.flops_per_second, op.bytes / roofs.bytes_per_second);
    const seconds = (row?.seconds ?? 0) + op.seconds;
    rows.set(key, {
      name: name(op),
      phase: op.phase,
      calls: (row?.calls ?? 0) + 1,
      seconds,
      share: total > 0 ? seconds / total : 0,
      flops: (row?.flops ?? 0) + op.flops,
      bytes: (row?.bytes ?? 0) + op.bytes,
      roof: seconds > 0 ? least / seconds : 0,
      least,
    });
  }
  return [...rows.values()].sort((a, b) => b.seconds - a.seconds).map(({ least: _, ...row }) => row);
}

export const profileOf = (ops: readonly ProfiledOp[], roofs: Roofs): Profile => ({
  roofs,
  phases: secondsByPhase(ops),
  ops: sumBy(ops, roofs, ({ op }) => op),
  layers: sumBy(ops, roofs, ({ scope }) => blockOf(scope) ?? 'outside the layers'),
});

/** A memory plan for people: bytes by purpose, largest first. */
export function memoryText(plan: MemoryPlan): string {
  const mib = (bytes: number): string => `${(bytes / 2 ** 20).toFixed(1)} MiB`;
  const purposes = Object.entries(plan).filter(([name, bytes]) => name !== 'total' && bytes > 0);
  const rows = purposes
    .sort(([, a], [, b]) => b - a)
    .map(([name, bytes]) => `${name.padEnd(26)} ${mib(bytes).padStart(14)}`);
  return ['memory', ...rows, `${'total'.padEnd(26)} ${mib(plan.total).padStart(14)}`].join('\n');
}

/** The profile for people. */
export function profileText(profile: Profile): string {
  const { roofs, ops, layers, phases } = profile;
  const phaseRows = Object.entries(phases).map(
    ([name, seconds]) => `${name.padEnd(26)} ${(seconds * 1000).toFixed(3).padStart(11)} ms`,
  );
  const line = (row: ProfileRow): string =>
    [
      row.name.padEnd(26),
      row.phase.padEnd(10),
      String(row.calls).padStart(6),
      (row.seconds * 1000).toFixed(3).padStart(11),
      `${(row.share * 100).toFixed(1)} %`.padStart(8),
      `${(row.roof * 100).toFixed(0)} %`.padStart(7),
    ].join(' ');
  const head = (what: string): string =>
    `${what.padEnd(26)} ${'phase'.padEnd(10)} ${'calls'.padStart(6)} ${'ms'.padStart(11)} ${'share'.padStart(8)} ${'of roof'.padStart(7)}`;
  const roof = `roofs measured here: ${(roofs.bytes_per_second / 1e9).toFixed(0)} GB/s, ${(roofs.flops_per_second / 1e12).toFixed(2)} TFLOP/s`;
  return [
    roof,
    '',
    ...phaseRows,
    '',
    head('op'),
    ...ops.map(line),
    '',
    head('layer'),
    ...layers.map(line),
  ].join('\n');
}
