/**
 * Reverse-mode differentiation of a graph: walks the nodes backwards and lets each op's rule add its share. Gradients of
 * parameters go to tensors the caller chooses; gradients of everything else are new tensors of the arena.
 */
import { Q4Error } from '../errors.js';
import { opSpec } from './ops/registry.js';
import { ADD } from './ops/add.js';
import { Recorder } from './recorder.js';
import type { Graph, Node, StoreTensor, Tensor } from './types.js';

export interface DifferentiateOptions {
  /** Gradient tensor of each trainable parameter, by the name of the parameter's tensor in the store. */
  readonly gradients: ReadonlyMap<string, StoreTensor>;
  /** Add to what the gradient tensors hold (a later micro batch) or overwrite it. */
  readonly accumulate: boolean;
}

export interface GradientTarget {
  readonly tensor: Tensor;
  /** 1 when the op must add to what is there. */
  readonly accumulate: 0 | 1;
}

/** What gradient rules work with. */
export class Tape {
  private readonly gradients = new Map<Tensor, Tensor>();
  private readonly touched = new Set<string>();
  private readonly replaced = new Map<Node, Node>();
  private readonly needing: ReadonlySet<Tensor>;
  private current: Node | undefined;

  constructor(
    private readonly graph: Graph,
    private readonly recorder: Recorder,
    private readonly options: DifferentiateOptions,
  ) {
    this.needing = this.findNeeding();
  }

  /** Whether something below this tensor trains. */
  needs(tensor: Tensor | null | undefined): boolean {
    return !!tensor && this.needing.has(tensor);
  }

  /** Takes the gradient that a tensor has got so far; its owner's rule passes it on. */
  take(tensor: Tensor | null | undefined): Tensor | null {
    if (!tensor) return null;
    const gradient = this.gradients.get(tensor) ?? null;
    this.gradients.delete(tensor);
    return gradient;
  }

  /** Adds a gradient; without effect when nothing below the tensor trains. */
  give(tensor: Tensor | null | undefined, gradient: Tensor): void {
    if (!tensor || !this.needs(tensor)) return;
    const known = this.gradients.get(tensor);
    const sum = known ? this.at(this.current!).emitOne(ADD, [known, gradient]) : gradient;
    this.gradients.set(tensor, sum);
  }

  /**
   * The gradient so far, if no other tensor has the same one and the op that wants to add to it in place does not read
   * it as well.
   */
  owned(tensor: Tensor | null | undefined, reading: Tensor): Tensor | null {
    const gradient = tensor ? this.gradients.get(tensor) : undefined;
    if (!gradient || gradient === reading) return null;
    let holders = 0;
    for (const held of this.gradients.values()) if (held === gradient) holders++;
    return holders === 1 ? gradient : null;
  }

  /** Where the gradient of a parameter goes, null when it is frozen. Each call counts as one contribution. */
  parameterGradient(weight: Tensor | null | undefined): GradientTarget | null {
    if (!weight || weight.place.kind !== 'store') return null;
    const { name } = weight.place.tensor;
    const target = this.options.gradients.get(name);
    if (!target) return null;
    const accumulate = this.options.accumulate || this.touched.has(name) ? 1 : 0;
    this.touched.add(name);
    return { tensor: this.recorder.stored(target), accumulate };
  }

  at(node: Node): Recorder {
    return this.recorder.at(node.scope);
  }

  /** Completes a recorded node: losses hand out their gradients in the forward pass. */
  replace(node: Node, completed: Node): void {
    this.replaced.set(node, completed);
  }

  bug(node: Node, problem: string): Q4Error {
    return new Q4Error('Q4510', `${node.op} at ${node.scope}: ${problem}`);
  }

  run(): Node[] {
    for (const node of [...this.graph.nodes].reverse()) {
      this.current = node;
      const spec = opSpec(node.op);
      if (spec.gradient) spec.gradient(this, node);
      else if (node.outputs.some((output) => output && this.gradients.has(output)))
        throw this.bug(node, 'has no gradient rule');
    }
    for (const name of this.options.gradients.keys())
      if (!this.touched.has(name)) throw new Q4Error('Q4510', `nothing gives a gradient to ${name}`);
    return [...this.graph.nodes.map((node) => this.replaced.get(node) ?? node), ...this.recorder.takeNodes()];
  }

  private findNeeding(): Set<Tensor> {
    const needing = new Set<Tensor>();
    const trains = (tensor: Tensor): boolean =>
      tensor.place.kind === 'store' && this.options.gradients.has(tensor.place.tensor.name);
    for (const node of this.graph.nodes)
      if (node.inputs.some((input) => input && (needing.has(input) || trains(input))))
        for (const output of node.outputs) if (output?.place.kind === 'arena') needing.add(output);
    return needing;
  }
}

/**
 * The graph with its gradients. Loss nodes are the roots. Nothing is emitted for frozen parameters, nor for chains that
 * lead to none.
 * @throws Q4Error Q4510 when a parameter that should train gets no gradient.
 */
export function differentiate(graph: Graph, options: DifferentiateOptions): Graph {
  const tape = new Tape(graph, Recorder.resume(graph, 'backward'), options);
  return { ...graph, nodes: tape.run() };
}
