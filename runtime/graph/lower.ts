/** Lowering: a graph becomes a flat program with planned arena offsets. */
import { Q4Error } from '../errors.js';
import type { Program, ProgramOp, ProgramTensor, Storage } from '../program.js';
import { findBuffers, liveBytes } from './lifetimes.js';
import { opSpec } from './ops/registry.js';
import { pack } from './pack.js';
import { checkOp } from './signature.js';
import { matches } from './patterns.js';
import type { Graph, Node, StoreTensor, Tensor } from './types.js';

export interface LowerOptions {
  /** Scopes whose results are kept in the store, as name patterns: `model.layers.3`, `*.self_attn.o_proj`. */
  readonly taps?: readonly string[];
  /** Put before the names of tap tensors. */
  readonly prefix?: string;
}

/** A program and what the store must hold before it is loaded. */
export interface Lowered {
  readonly program: Program;
  /** Every tensor of the store that the program uses, whole. */
  readonly tensors: readonly StoreTensor[];
  /** Kept results: scope → name in the store. Two scopes may have the same result. */
  readonly taps: ReadonlyMap<string, string>;
  /** Bytes that no placement of the arena can go below. */
  readonly liveBytes: number;
}

interface Taps {
  readonly byScope: ReadonlyMap<string, string>;
  readonly byTensor: ReadonlyMap<Tensor, StoreTensor>;
}

/** @throws Q4Error Q4510 when an op does not fit the contract or reads what nothing wrote, Q4515 for an unknown tap. */
export function lower(graph: Graph, options: LowerOptions = {}): Lowered {
  for (const node of graph.nodes) checkOp(opSpec(node.op), node);
  checkWrittenBeforeRead(graph.nodes);
  const taps = chooseTaps(graph, options);
  const buffers = findBuffers(graph.nodes, new Set(taps.byTensor.keys()));
  const live = liveBytes(buffers);
  const packing = pack(buffers, live);
  const offsetOf = new Map<Tensor, number>();
  for (const buffer of buffers)
    for (const tensor of buffer.tensors) offsetOf.set(tensor, packing.offsets.get(buffer)!);

  const stored = new Map<string, StoreTensor>();
  const keep = (tensor: StoreTensor): void => {
    const known = stored.get(tensor.name);
    if (known && (known.dtype !== tensor.dtype || known.shape.join() !== tensor.shape.join()))
      throw new Q4Error('Q4510', `the store tensor ${tensor.name} is used with two shapes or dtypes`);
    stored.set(tensor.name, known ?? tensor);
  };
  const storage = (tensor: Tensor): Storage => {
    const tap = taps.byTensor.get(tensor);
    const place = tap ? { kind: 'store' as const, tensor: tap, byteOffset: 0 } : tensor.place;
    if (place.kind === 'arena') return { kind: 'arena', offset: offsetOf.get(tensor)! };
    keep(place.tensor);
    const { byteOffset } = place;
    return { kind: 'store', name: place.tensor.name, ...(byteOffset > 0 && { byteOffset }) };
  };

  const tensors: ProgramTensor[] = [];
  const indexOf = new Map<Tensor, number>();
  const index = (tensor: Tensor | null): number => {
    if (!tensor) return -1;
    const known = indexOf.get(tensor);
    if (known !== undefined) return known;
    const { name, dtype, shape } = tensor;
    indexOf.set(tensor, tensors.length);
    tensors.push({ name, dtype, shape: [...shape], storage: storage(tensor) });
    return tensors.length - 1;
  };
  const ops = graph.nodes.map((node): ProgramOp => ({
    op: node.op,
    inputs: node.inputs.map(index),
    outputs: node.outputs.map(index),
    attrs: { ...node.attrs },
    scope: node.scope,
    phase: node.phase,
  }));
  const program: Program = { version: 1, name: graph.name, tensors, ops, arenaBytes: packing.bytes };
  return { program, tensors: [...stored.values()], taps: taps.byScope, liveBytes: live };
}

/** Arena memory holds anything at first: an op may read only what an earlier one wrote. */
function checkWrittenBeforeRead(nodes: readonly Node[]): void {
  const written = new Set<Tensor>();
  for (const node of nodes) {
    const modified = (opSpec(node.op).modifies?.(node) ?? []).map((position) => node.outputs[position]);
    for (const tensor of [...node.inputs, ...modified])
      if (tensor?.place.kind === 'arena' && !written.has(tensor))
        throw new Q4Error(
          'Q4510',
          `${node.op} at ${node.scope} reads ${tensor.name} before anything wrote it`,
        );
    for (const output of node.outputs) if (output) written.add(output);
  }
}

function chooseTaps(graph: Graph, options: LowerOptions): Taps {
  const byScope = new Map<string, string>();
  const byTensor = new Map<Tensor, StoreTensor>();
  const made = new Set(graph.nodes.flatMap((node) => node.outputs));
  const candidates = [...graph.results].filter(([, tensor]) => made.has(tensor));
  for (const pattern of options.taps ?? []) {
    const chosen = candidates.filter(([scope]) => matches(pattern, scope));
    if (chosen.length === 0)
      throw new Q4Error('Q4515', `nothing in the program is called '${pattern}'`, {
        expected: 'a scope of the wiring, such as model.layers.3 or *.self_attn.o_proj',
      });
    // The shortest scope names the tensor when several have the same result.
    for (const [scope, tensor] of chosen.sort(([a], [b]) => a.length - b.length)) {
      if (tensor.place.kind === 'store') {
        byScope.set(scope, tensor.place.tensor.name);
        continue;
      }
      const name = `${options.prefix ?? ''}tap.${scope}`;
      const { dtype, shape } = tensor;
      const kept = byTensor.get(tensor) ?? { name, dtype, shape, purpose: 'taps' as const };
      byTensor.set(tensor, kept);
      byScope.set(scope, kept.name);
    }
  }
  return { byScope, byTensor };
}
