/** Records nodes while wiring is applied to symbolic tensors. A recorder knows the scope it stands in. */
import { Q4Error } from '../errors.js';
import { inferOutputs, checkOp, parseSignature } from './signature.js';
import type {
  Activation,
  DeviceKind,
  DType,
  Graph,
  Node,
  OpSpec,
  OpView,
  Phase,
  StoreTensor,
  Tensor,
  TensorType,
} from './types.js';

interface Sink {
  readonly nodes: Node[];
  readonly results: Map<string, Tensor>;
  /** How often a name was taken. */
  readonly names: Map<string, number>;
  readonly stored: Map<string, Tensor>;
}

export interface EmitOptions {
  readonly attrs?: Readonly<Record<string, number>>;
  /** Outputs that exist already (store tensors, buffers that are added to), by the contract's name; null: absent. */
  readonly into?: Readonly<Record<string, Tensor | null>>;
  /** Dtypes of outputs where the contract leaves a choice. */
  readonly dtypes?: Readonly<Record<string, DType>>;
}

export class Recorder {
  private constructor(
    private readonly sink: Sink,
    readonly device: DeviceKind,
    readonly activation: Activation,
    /** Scope path, '' at the top. */
    readonly path: string,
    readonly phase: Phase,
  ) {}

  static start(device: DeviceKind, activation: Activation, phase: Phase = 'forward'): Recorder {
    const sink = { nodes: [], results: new Map(), names: new Map(), stored: new Map() };
    return new Recorder(sink, device, activation, '', phase);
  }

  /** Goes on where a graph ends; transforms use it to make new tensors whose names are still free. */
  static resume(graph: Graph, phase: Phase): Recorder {
    const recorder = Recorder.start(graph.device, graph.activation, phase);
    for (const node of graph.nodes)
      for (const tensor of [...node.inputs, ...node.outputs])
        if (tensor?.place.kind === 'arena') recorder.sink.names.set(tensor.name, 1);
        else if (tensor) recorder.sink.stored.set(storedKey(tensor), tensor);
    for (const [scope, tensor] of graph.results) recorder.sink.results.set(scope, tensor);
    return recorder;
  }

  /** The same recording, one scope deeper. */
  within(name: string): Recorder {
    const path = this.path === '' ? name : `${this.path}.${name}`;
    return new Recorder(this.sink, this.device, this.activation, path, this.phase);
  }

  at(path: string, phase: Phase = this.phase): Recorder {
    return new Recorder(this.sink, this.device, this.activation, path, phase);
  }

  /** Notes what the scope gives, for taps. */
  result(tensor: Tensor): void {
    this.sink.results.set(this.path, tensor);
  }

  /** A tensor of the arena, under a name that is still free. */
  arena(name: string, type: TensorType): Tensor {
    const taken = this.sink.names.get(name) ?? 0;
    this.sink.names.set(name, taken + 1);
    const free = taken === 0 ? name : `${name}#${taken + 1}`;
    return { name: free, dtype: type.dtype, shape: type.shape, place: { kind: 'arena' } };
  }

  /** A tensor of the store, or with `view` a part of it: `shape` elements from `byteOffset`. */
  stored(tensor: StoreTensor, view?: { shape: readonly number[]; byteOffset: number }): Tensor {
    const made: Tensor = {
      name: tensor.name,
      dtype: tensor.dtype,
      shape: view?.shape ?? tensor.shape,
      place: { kind: 'store', tensor, byteOffset: view?.byteOffset ?? 0 },
    };
    const key = storedKey(made);
    const known = this.sink.stored.get(key);
    if (!known) {
      this.sink.stored.set(key, made);
      return made;
    }
    if (known.dtype !== made.dtype || known.shape.join() !== made.shape.join())
      throw new Q4Error('Q4510', `the store tensor ${tensor.name} is used with two shapes or dtypes`);
    return known;
  }

  /**
   * Records one op and returns its outputs in the order of the contract. Required outputs that are not in `into` become
   * new tensors of the arena; optional ones are absent; scratch is made as the device needs it.
   * @throws Q4Error Q4510 when shapes or dtypes do not fit.
   */
  emit(
    spec: OpSpec,
    inputs: readonly (Tensor | null)[],
    options: EmitOptions = {},
  ): readonly (Tensor | null)[] {
    const attrs = options.attrs ?? {};
    const inferred = inferOutputs(spec, inputs, attrs, this.activation);
    const outputs = parseSignature(spec.signature).outputs.map((argument, index): Tensor | null => {
      const given = options.into?.[argument.name];
      if (given !== undefined) return given;
      const type = inferred[index];
      if (!type) return null;
      const dtype = options.dtypes?.[argument.name] ?? type.dtype;
      return this.arena(this.outputName(argument.name, index), { dtype, shape: type.shape });
    });
    if (spec.scratch) {
      const view: OpView = { op: spec.name, inputs, outputs, attrs };
      const shape = spec.scratch(view, this.device);
      if (shape)
        outputs[outputs.length - 1] = this.arena(`${this.label(spec)}.scratch`, { dtype: 'f32', shape });
    }
    const node: Node = { op: spec.name, inputs, outputs, attrs, scope: this.path, phase: this.phase };
    checkOp(spec, node);
    this.sink.nodes.push(node);
    return outputs;
  }

  /** As `emit`, for the one output that matters. */
  emitOne(spec: OpSpec, inputs: readonly (Tensor | null)[], options: EmitOptions = {}): Tensor {
    const [first] = this.emit(spec, inputs, options);
    if (!first) throw new Q4Error('Q4510', `${spec.name} gave no output`);
    return first;
  }

  /** Takes the nodes recorded since the last call; transforms place them where they belong. */
  takeNodes(): Node[] {
    return this.sink.nodes.splice(0);
  }

  finish(name: string): Graph {
    const { nodes, results } = this.sink;
    return {
      name,
      device: this.device,
      activation: this.activation,
      nodes: [...nodes],
      results: new Map(results),
    };
  }

  private label(spec: OpSpec): string {
    return this.path === '' ? spec.name : this.path;
  }

  private outputName(argument: string, index: number): string {
    if (this.path === '') return argument;
    return index === 0 && this.phase === 'forward' ? this.path : `${this.path}.${argument}`;
  }
}

const storedKey = (tensor: Tensor): string =>
  tensor.place.kind === 'store'
    ? `${tensor.place.tensor.name}@${tensor.place.byteOffset}:${tensor.shape.join()}`
    : '';
