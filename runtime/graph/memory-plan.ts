/** Device memory by purpose, known before anything is allocated. */
import { Q4Error } from '../errors.js';
import { alignUp, tensorBytes } from '../program.js';
import type { Lowered } from './lower.js';
import type { Purpose, StoreTensor } from './types.js';

export type MemoryPlan = Readonly<Record<Purpose | 'activations', number>> & { readonly total: number };

/**
 * Bytes that some programs and further store tensors take together. Store tensors of one name are shared; the programs
 * run one at a time in one arena as large as the largest needs.
 * @throws Q4Error Q4510 when one name stands for two shapes or dtypes.
 */
export function planMemory(programs: readonly Lowered[], tensors: readonly StoreTensor[] = []): MemoryPlan {
  const plan = {
    weights: 0,
    masters: 0,
    moments: 0,
    gradients: 0,
    activations: Math.max(0, ...programs.map(({ program }) => alignUp(program.arenaBytes))),
    cache: 0,
    io: 0,
    taps: 0,
    total: 0,
  };
  for (const tensor of unionOfTensors([...programs.map((lowered) => lowered.tensors), tensors]))
    plan[tensor.purpose] += tensorBytes(tensor.dtype, tensor.shape);
  plan.total = Object.values(plan).reduce((a, b) => a + b, 0);
  return plan;
}

/** All store tensors of several lists, each once. */
export function unionOfTensors(lists: readonly (readonly StoreTensor[])[]): StoreTensor[] {
  const union = new Map<string, StoreTensor>();
  for (const tensor of lists.flat()) {
    const known = union.get(tensor.name);
    if (known && (known.dtype !== tensor.dtype || known.shape.join() !== tensor.shape.join()))
      throw new Q4Error(
        'Q4510',
        `the store tensor ${tensor.name} is ${known.dtype}[${known.shape.join(', ')}] in one program and ` +
          `${tensor.dtype}[${tensor.shape.join(', ')}] in another`,
      );
    union.set(tensor.name, known ?? tensor);
  }
  return [...union.values()];
}
