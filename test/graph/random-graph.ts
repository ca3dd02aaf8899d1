/** Random graphs of differentiable ops over rows of several widths, for tests of lowering and gradients. */
import { add } from '../../runtime/graph/ops/add.js';
import { l1Loss } from '../../runtime/graph/ops/l1-loss.js';
import { linear } from '../../runtime/graph/ops/linear.js';
import { rmsNorm } from '../../runtime/graph/ops/rms-norm.js';
import { swiglu } from '../../runtime/graph/ops/swiglu.js';
import { Recorder } from '../../runtime/graph/recorder.js';
import type { Graph, StoreTensor, Tensor } from '../../runtime/graph/types.js';

export interface RandomGraph {
  readonly graph: Graph;
  readonly weights: readonly StoreTensor[];
}

/** `ops` ops on [rows, 4 | 6 | 90]; all that is left unused is joined and compared with `target`. */
export function randomGraph(random: () => number, ops: number, rows = 3): RandomGraph {
  const at = Recorder.start('cpu', 'f32');
  const weights: StoreTensor[] = [];
  const pick = <T>(list: readonly T[]): T => list[Math.floor(random() * list.length)]!;
  const stored = (name: string, shape: readonly number[]): Tensor => {
    const tensor: StoreTensor = { name, dtype: 'f32', shape, purpose: 'weights' };
    if (name.startsWith('w')) weights.push(tensor);
    return at.stored(tensor);
  };
  const made: Tensor[] = [];
  const unused = new Set<Tensor>();
  const use = (tensor: Tensor): Tensor => (unused.delete(tensor), tensor);
  const keep = (tensor: Tensor): void => (made.push(tensor), void unused.add(tensor));
  const widen = (x: Tensor, width: number, scope: Recorder): Tensor =>
    linear(stored(`w${weights.length}`, [width, x.shape[1]!]))(x, scope);

  keep(widen(stored('x', [rows, 5]), 4, at.within('first')));
  for (let step = 0; step < ops; step++) {
    const scope = at.within(`op${step}`);
    const x = use(random() < 0.5 ? made.at(-1)! : pick(made));
    const mates = made.filter(({ shape }) => shape[1] === x.shape[1]);
    switch (pick(['add', 'add', 'norm', 'norm', 'linear', 'swiglu'] as const)) {
      case 'add':
        keep(add(x, use(pick(mates)), scope));
        break;
      case 'swiglu':
        keep(swiglu(x, use(pick(mates)), scope));
        break;
      case 'norm':
        keep(rmsNorm(stored(`w${weights.length}`, [x.shape[1]!]), 1e-2)(x, scope));
        break;
      case 'linear':
        keep(widen(x, pick([4, 6, 90]), scope));
        break;
    }
  }
  const ends = [...unused].map((tensor, index) => widen(tensor, 4, at.within(`end${index}`)));
  const joined = ends.reduce((a, b, index) => add(a, b, at.within(`join${index}`)));
  const scalar = (name: string): Tensor => stored(name, [1]);
  const target = stored('target', [rows, 4]);
  const operands = { x: joined, target, scale: scalar('scale'), loss: scalar('loss') };
  l1Loss(operands, false, at.at('loss', 'loss'));
  return { graph: at.finish('random'), weights };
}
