/**
 * Signatures of ops: 'x: act[N,C], weight: f32[C] -> y: act[N,C], rstd: f32[N]'.
 *
 * `act` is one activation dtype (f32 or bf16) throughout an op; `weight` any weight dtype; `a|b` alternatives, the first
 * being what is inferred. A dimension is a product or quotient of numbers, attributes and symbols (`N*W/head_dim`); a
 * lone symbol that is not known yet takes the dimension's value. `[*]` is a whole shape, the same wherever it stands.
 * `name?:` may be absent. The same text infers the shapes of outputs and checks complete ops.
 */
import { Q4Error } from '../errors.js';
import type { Activation, DType, OpSpec, OpView, TensorType } from './types.js';

export interface Argument {
  readonly name: string;
  readonly optional: boolean;
  readonly dtypes: readonly string[];
  /** null: a whole shape. */
  readonly dims: readonly string[] | null;
}

export interface Signature {
  readonly inputs: readonly Argument[];
  readonly outputs: readonly Argument[];
}

const WEIGHT: readonly DType[] = ['nvfp4', 'f32', 'bf16', 'f16'];
const ACT: readonly DType[] = ['f32', 'bf16'];

const parsed = new Map<string, Signature>();

export function parseSignature(text: string): Signature {
  const known = parsed.get(text);
  if (known) return known;
  const side = (part: string): Argument[] =>
    [...part.matchAll(/(\w+)(\?)?: ([\w|]+)\[([^\]]*)\]/g)].map((match) => ({
      name: match[1]!,
      optional: match[2] !== undefined,
      dtypes: match[3]!.split('|'),
      dims: match[4] === '*' ? null : match[4]!.split(',').map((dim) => dim.trim()),
    }));
  const [inputs = '', outputs = ''] = text.split('->');
  const signature = { inputs: side(inputs), outputs: side(outputs) };
  parsed.set(text, signature);
  return signature;
}

const show = (type: TensorType): string => `${type.dtype}[${type.shape.join(', ')}]`;

/** Symbols, attributes, the activation dtype and the whole shape of one op, as far as its tensors tell. */
class Binding {
  readonly symbols = new Map<string, number>();
  act: DType | undefined;
  whole: readonly number[] | undefined;

  constructor(
    readonly op: string,
    attrs: Readonly<Record<string, number>>,
  ) {
    for (const [name, value] of Object.entries(attrs)) this.symbols.set(name, value);
  }

  fail(argument: Argument, problem: string): never {
    throw new Q4Error('Q4510', `${this.op}: ${argument.name} ${problem}`);
  }

  value(expression: string): number | undefined {
    let result = 1;
    for (const [, sign, term] of `*${expression}`.matchAll(/([*/])(\w+)/g)) {
      const number = /^\d+$/.test(term!) ? Number(term) : this.symbols.get(term!);
      if (number === undefined) return undefined;
      result = sign === '*' ? result * number : result / number;
    }
    return result;
  }

  accepts(argument: Argument, dtype: DType): boolean {
    return argument.dtypes.some((name) => {
      if (name === 'weight') return WEIGHT.includes(dtype);
      if (name !== 'act') return name === dtype;
      if (!ACT.includes(dtype)) return false;
      // 'act|f32' must not fix the activation dtype of the op.
      if (argument.dtypes.length > 1) return true;
      this.act ??= dtype;
      return this.act === dtype;
    });
  }

  bind(argument: Argument, type: TensorType): void {
    if (!this.accepts(argument, type.dtype))
      this.fail(argument, `is ${show(type)}, expected ${argument.dtypes.join(' or ')}`);
    if (argument.dims === null) {
      this.whole ??= type.shape;
      if (this.whole.join() !== type.shape.join())
        this.fail(argument, `is ${show(type)}, expected the shape [${this.whole.join(', ')}]`);
      return;
    }
    if (argument.dims.length !== type.shape.length)
      this.fail(argument, `is ${show(type)}, expected the shape [${argument.dims.join(', ')}]`);
    argument.dims.forEach((dim, index) => {
      const found = type.shape[index]!;
      const expected = this.value(dim);
      if (expected === undefined) {
        if (!/^[A-Za-z_]\w*$/.test(dim)) this.fail(argument, `has the unknown dimension ${dim}`);
        this.symbols.set(dim, found);
      } else if (expected !== found) this.fail(argument, `is ${show(type)}, but ${dim} is ${expected}`);
    });
  }

  infer(argument: Argument, activation: Activation): TensorType {
    const first = argument.dtypes[0]!;
    const dtype = first === 'act' ? (this.act ?? activation) : (first as DType);
    if (argument.dims === null) {
      if (!this.whole) return this.fail(argument, 'has no shape to infer');
      return { dtype, shape: this.whole };
    }
    const shape = argument.dims.map(
      (dim) => this.value(dim) ?? this.fail(argument, `has the unknown dimension ${dim}`),
    );
    return { dtype, shape };
  }
}

function bindInputs(spec: OpSpec, inputs: readonly (TensorType | null)[], attrs: OpView['attrs']): Binding {
  const binding = new Binding(spec.name, attrs);
  const signature = parseSignature(spec.signature);
  if (inputs.length !== signature.inputs.length)
    throw new Q4Error('Q4510', `${spec.name} takes ${signature.inputs.length} inputs, not ${inputs.length}`);
  for (const name of spec.attrs ?? [])
    if (!Number.isFinite(attrs[name])) throw new Q4Error('Q4510', `${spec.name} lacks the attribute ${name}`);
  signature.inputs.forEach((argument, index) => {
    const type = inputs[index];
    if (type) binding.bind(argument, type);
    else if (!argument.optional) binding.fail(argument, 'is missing');
  });
  return binding;
}

/**
 * Types of the outputs that follow from inputs and attributes; null for optional ones.
 * @throws Q4Error Q4510 when the inputs do not fit the signature.
 */
export function inferOutputs(
  spec: OpSpec,
  inputs: readonly (TensorType | null)[],
  attrs: OpView['attrs'],
  activation: Activation,
): (TensorType | null)[] {
  const binding = bindInputs(spec, inputs, attrs);
  return parseSignature(spec.signature).outputs.map((argument) =>
    argument.optional || argument.name === 'scratch' || unknown(binding, argument)
      ? null
      : binding.infer(argument, activation),
  );
}

/** Outputs whose shape no input tells (fill, random_normal, adamw's state) are always given by the caller. */
const unknown = (binding: Binding, argument: Argument): boolean =>
  argument.dims === null ? !binding.whole : argument.dims.some((dim) => binding.value(dim) === undefined);

/** @throws Q4Error Q4510 when a complete op does not fit its signature. */
export function checkOp(spec: OpSpec, view: OpView): void {
  const binding = bindInputs(spec, view.inputs, view.attrs);
  const { outputs } = parseSignature(spec.signature);
  if (view.outputs.length !== outputs.length)
    throw new Q4Error('Q4510', `${spec.name} gives ${outputs.length} outputs, not ${view.outputs.length}`);
  outputs.forEach((argument, index) => {
    const type = view.outputs[index];
    if (type) {
      if (argument.name === 'scratch') {
        if (type.dtype !== 'f32') binding.fail(argument, `is ${show(type)}, expected f32`);
      } else binding.bind(argument, type);
    } else if (!argument.optional) binding.fail(argument, 'is missing');
  });
  const problem = spec.check?.(view);
  if (problem) throw new Q4Error('Q4510', `${spec.name}: ${problem}`);
}
