/** Programs as text for people: what `q4run graph` prints. The JSON form is the program itself. */
import type { Program, ProgramTensor } from '../program.js';
import { opSpec } from './ops/registry.js';
import { parseSignature } from './signature.js';
import { summarise } from './summary.js';

const UNITS = ['', 'k', 'M', 'G', 'T', 'P'];

/** 1234567 → '1.23 M' */
function scaled(value: number, step: number): string {
  let unit = 0;
  let rest = value;
  while (rest >= step && unit < UNITS.length - 1) {
    rest /= step;
    unit++;
  }
  return `${unit === 0 ? rest : rest.toPrecision(3)} ${UNITS[unit]}`;
}

const bytes = (value: number): string =>
  `${scaled(value, 1024)
    .replace('k', 'Ki')
    .replace(/([MGTP])$/, '$1i')}B`;

function operand(tensor: ProgramTensor): string {
  const { storage } = tensor;
  const view = storage.kind === 'store' && storage.byteOffset ? `+${storage.byteOffset}` : '';
  const place = storage.kind === 'arena' ? `@${storage.offset}` : `=${storage.name}${view}`;
  return `${tensor.dtype}[${tensor.shape.join(',')}]${place}`;
}

/** One line an op: index, phase, op, scope, operands (@ offset in the arena, = name in the store), attributes. */
export function printProgram(program: Program): string {
  const total = summarise(program);
  const lines = [
    `program ${program.name}: ${program.ops.length} ops, ${program.tensors.length} tensors, arena ${bytes(program.arenaBytes)}, ` +
      `${scaled(total.flops, 1000)}FLOP`,
  ];
  program.ops.forEach((op, index) => {
    const signature = parseSignature(opSpec(op.op).signature);
    const side = (indices: readonly number[], names: readonly { readonly name: string }[]): string =>
      indices
        .map((at, position) =>
          at === -1 ? null : `${names[position]!.name} ${operand(program.tensors[at]!)}`,
        )
        .filter((text) => text !== null)
        .join(', ');
    const attrs = Object.entries(op.attrs).map(([name, value]) => `${name}=${value}`);
    lines.push(
      `${String(index).padStart(4)} ${op.phase.padEnd(9)} ${op.op.padEnd(23)} ${op.scope || '-'}`,
      `       ${[side(op.inputs, signature.inputs), '→', side(op.outputs, signature.outputs)].join(' ').trim()}` +
        (attrs.length > 0 ? ` {${attrs.join(', ')}}` : ''),
    );
  });
  lines.push('', 'op                       count        FLOP       bytes');
  for (const { op, count, flops, bytes: moved } of total.byOp)
    lines.push(
      `${op.padEnd(24)} ${String(count).padStart(5)} ${scaled(flops, 1000).padStart(11)} ${bytes(moved).padStart(11)}`,
    );
  return lines.join('\n') + '\n';
}
