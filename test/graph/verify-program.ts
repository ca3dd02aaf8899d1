/**
 * Checks a lowered program from its definition alone, without the planner's own notions: every op fits the contract,
 * everything is read only after it was written, and two tensors that are alive at once never share a byte, except an
 * output that takes over an input where the op allows it.
 */
import { ALIGNMENT, tensorBytes, type Program } from '../../runtime/program.js';
import { opSpec } from '../../runtime/graph/ops/registry.js';
import { checkOp } from '../../runtime/graph/signature.js';
import { opView } from '../../runtime/graph/summary.js';

interface Life {
  readonly name: string;
  readonly start: number;
  readonly end: number;
  first: number;
  last: number;
}

/** Problems in words; none for a sound program. */
export function verifyProgram(program: Program): string[] {
  const problems: string[] = [];
  const lives = new Map<number, Life>();
  const written = new Set<number>();
  program.ops.forEach((op, at) => {
    try {
      checkOp(opSpec(op.op), opView(program, op));
    } catch (error) {
      problems.push((error as Error).message);
    }
    const alsoRead = (opSpec(op.op).modifies?.(opView(program, op)) ?? []).map(
      (position) => op.outputs[position]!,
    );
    for (const index of [...op.inputs, ...alsoRead])
      if (isArena(program, index) && !written.has(index))
        problems.push(`op ${at} reads tensor ${index} unwritten`);
    for (const index of op.outputs) written.add(index);
    for (const index of [...op.inputs, ...op.outputs]) {
      if (!isArena(program, index)) continue;
      const { storage, dtype, shape, name } = program.tensors[index]!;
      const start = storage.kind === 'arena' ? storage.offset : 0;
      const life = lives.get(index) ?? {
        name,
        start,
        end: start + tensorBytes(dtype, shape),
        first: at,
        last: at,
      };
      life.last = at;
      lives.set(index, life);
    }
  });
  const all = [...lives].sort(([, a], [, b]) => a.first - b.first);
  all.forEach(([index, life], position) => {
    if (life.start % ALIGNMENT !== 0) problems.push(`${life.name} is not aligned`);
    if (life.end > program.arenaBytes) problems.push(`${life.name} ends outside the arena`);
    for (const [later, other] of all.slice(position + 1)) {
      if (other.first > life.last || other.start >= life.end || life.start >= other.end) continue;
      if (!takesOver(program, index, later, life, other))
        problems.push(`${life.name} and ${other.name} overlap`);
    }
  });
  if (program.arenaBytes !== Math.max(0, ...all.map(([, life]) => life.end)))
    problems.push('the arena is too large');
  return problems;
}

const isArena = (program: Program, index: number): boolean =>
  index >= 0 && program.tensors[index]!.storage.kind === 'arena';

/** Whether `to` is made in the very op that reads `from` last, in its place, and the op allows that. */
function takesOver(program: Program, from: number, to: number, before: Life, after: Life): boolean {
  if (before.last !== after.first || before.start !== after.start || before.end !== after.end) return false;
  const op = program.ops[after.first]!;
  if (op.inputs.filter((input) => input === from).length > 1) return false;
  return (opSpec(op.op).inPlace ?? []).some(
    ([output, input]) => op.outputs[output] === to && op.inputs[input] === from,
  );
}

/** The same program with every arena tensor in a place of its own. */
export function spreadOut(program: Program): Program {
  let offset = 0;
  const tensors = program.tensors.map((tensor) => {
    if (tensor.storage.kind !== 'arena') return tensor;
    const storage = { kind: 'arena' as const, offset };
    offset += tensorBytes(tensor.dtype, tensor.shape);
    return { ...tensor, storage };
  });
  return { ...program, tensors, arenaBytes: offset };
}
