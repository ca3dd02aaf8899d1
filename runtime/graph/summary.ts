/** What a program does, counted: per op and in sum. */
import type { Program, ProgramOp } from '../program.js';
import { opSpec } from './ops/registry.js';
import type { Cost, OpView } from './types.js';

/** One op of a program with the types of its operands. */
export function opView(program: Program, op: ProgramOp): OpView {
  const type = (index: number) => (index === -1 ? null : program.tensors[index]!);
  return { op: op.op, inputs: op.inputs.map(type), outputs: op.outputs.map(type), attrs: op.attrs };
}

/** Work of each op, in the order of the program; profiles divide it by the measured time. */
export const opCosts = (program: Program): Cost[] =>
  program.ops.map((op) => opSpec(op.op).cost(opView(program, op)));

export interface OpTotal extends Cost {
  readonly op: string;
  readonly count: number;
}

export interface ProgramSummary extends Cost {
  readonly ops: number;
  readonly arenaBytes: number;
  /** By op, most operations first. */
  readonly byOp: readonly OpTotal[];
}

export function summarise(program: Program): ProgramSummary {
  const totals = new Map<string, OpTotal>();
  opCosts(program).forEach((cost, index) => {
    const { op } = program.ops[index]!;
    const known = totals.get(op) ?? { op, count: 0, flops: 0, bytes: 0 };
    totals.set(op, {
      op,
      count: known.count + 1,
      flops: known.flops + cost.flops,
      bytes: known.bytes + cost.bytes,
    });
  });
  const byOp = [...totals.values()].sort((a, b) => b.flops - a.flops || b.bytes - a.bytes);
  return {
    ops: program.ops.length,
    arenaBytes: program.arenaBytes,
    flops: byOp.reduce((sum, total) => sum + total.flops, 0),
    bytes: byOp.reduce((sum, total) => sum + total.bytes, 0),
    byOp,
  };
}
