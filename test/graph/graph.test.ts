import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { readFileSync } from 'node:fs';
import { fanout, layers, merge, pipe, residual, scope, type Wire } from '../../runtime/graph/combinators.js';
import { canonicalText, fnv1a64 } from '../../runtime/graph/fingerprint.js';
import { differentiate } from '../../runtime/graph/gradient.js';
import { lower } from '../../runtime/graph/lower.js';
import { add } from '../../runtime/graph/ops/add.js';
import { ATTENTION } from '../../runtime/graph/ops/attention.js';
import { linear } from '../../runtime/graph/ops/linear.js';
import { OPS, opSpec } from '../../runtime/graph/ops/registry.js';
import { rmsNorm } from '../../runtime/graph/ops/rms-norm.js';
import { matches } from '../../runtime/graph/patterns.js';
import { printProgram } from '../../runtime/graph/print.js';
import { Recorder } from '../../runtime/graph/recorder.js';
import { fuseAddNorm } from '../../runtime/graph/rewrites/fuse-add-norm.js';
import { prune } from '../../runtime/graph/rewrites/prune.js';
import { checkOp, inferOutputs, parseSignature } from '../../runtime/graph/signature.js';
import { opCosts, summarise } from '../../runtime/graph/summary.js';
import type { Tensor, TensorType } from '../../runtime/graph/types.js';

const f32 = (...shape: number[]): TensorType => ({ dtype: 'f32', shape });
const i32 = (...shape: number[]): TensorType => ({ dtype: 'i32', shape });
const code = (expected: string) => (error: { code?: string }) => error.code === expected;

const stored = (at: Recorder, name: string, ...shape: number[]): Tensor =>
  at.stored({ name, dtype: 'f32', shape, purpose: 'weights' });

test('scopes name tensors, and what a scope gives is its result', () => {
  const at = Recorder.start('cpu', 'f32');
  const weight = stored(at, 'w', 4, 4);
  const layer: Wire = residual('sum', scope('proj', linear(weight)));
  const output = scope(
    'model',
    layers(2, () => pipe(layer, scope('norm', rmsNorm(stored(at, 'n', 4), 1e-6)))),
  )(stored(at, 'x', 2, 4), at);
  const { nodes, results } = at.finish('scopes');
  assert.equal(
    nodes.map(({ scope: path, op }) => `${path} ${op}`),
    ['model.0.proj linear', 'model.0.sum add', 'model.0.norm rms_norm']
      .flatMap((line) => [line])
      .concat(['model.1.proj linear', 'model.1.sum add', 'model.1.norm rms_norm']),
  );
  assert.is(results.get('model'), output);
  assert.is(results.get('model.1'), output);
  assert.is(results.get('model.1.sum')?.name, 'model.1.sum');
  assert.is(nodes.at(-1)!.outputs[1]?.name, 'model.1.norm.rstd');
});

test('fanout gives one input to all wires, merge joins them in order', () => {
  const at = Recorder.start('cpu', 'f32');
  const [a, b] = [stored(at, 'a', 4, 4), stored(at, 'b', 4, 4)];
  const join = merge<readonly [Tensor, Tensor], Tensor>((left, right, inner) => add(left, right, inner));
  pipe(fanout(scope('left', linear(a)), scope('right', linear(b))), scope('join', join))(
    stored(at, 'x', 2, 4),
    at,
  );
  const { nodes } = at.finish('fanout');
  assert.is(nodes[0]!.inputs[0], nodes[1]!.inputs[0]);
  assert.equal(
    nodes[2]!.inputs.map((tensor) => tensor!.name),
    ['left', 'right'],
  );
});

test('names are unique', () => {
  const at = Recorder.start('cpu', 'f32');
  const x = stored(at, 'x', 2, 4);
  add(x, x, at.within('same'));
  add(x, x, at.within('same'));
  assert.equal(
    at.finish('names').nodes.map(({ outputs }) => outputs[0]!.name),
    ['same', 'same#2'],
  );
});

test('signatures infer shapes', () => {
  const attrs = { batch: 2, heads: 4, kv_heads: 2, head_dim: 8 };
  const inputs = [f32(6, 32), f32(6, 16), f32(6, 16), i32(6), null];
  assert.equal(inferOutputs(ATTENTION, inputs, attrs, 'f32'), [f32(6, 32), f32(6, 4), null]);
  const rope = opSpec('head_norm_rope');
  const given = [{ dtype: 'bf16', shape: [3, 32] } as const, f32(8), i32(3)];
  assert.equal(inferOutputs(rope, given, { head_dim: 8, eps: 1e-6, theta: 1e4 }, 'f32'), [
    { dtype: 'bf16', shape: [3, 32] },
    f32(3, 4),
  ]);
});

const MISFITS: [
  string,
  string,
  (TensorType | null)[],
  (TensorType | null)[],
  Record<string, number>,
  RegExp,
][] = [
  ['a missing input', 'linear', [f32(2, 4), null], [f32(2, 4)], {}, /weight is missing/],
  ['too few inputs', 'linear', [f32(2, 4)], [f32(2, 4)], {}, /takes 2 inputs, not 1/],
  ['too many outputs', 'linear', [f32(2, 4), f32(3, 4)], [f32(2, 3), null], {}, /gives 1 outputs/],
  [
    'widths that differ',
    'linear',
    [f32(2, 4), f32(3, 5)],
    [f32(2, 3)],
    {},
    /weight is f32\[3, 5\], but K is 4/,
  ],
  ['a wrong dtype', 'embedding', [f32(9, 4), f32(2)], [f32(2, 4)], {}, /ids is f32\[2\], expected i32/],
  ['two activation dtypes', 'add', [f32(4), { dtype: 'bf16', shape: [4] }], [f32(4)], {}, /b is bf16/],
  ['shapes that differ', 'add', [f32(4), f32(5)], [f32(4)], {}, /expected the shape \[4\]/],
  ['a wrong rank', 'rms_norm', [f32(4), f32(4)], [f32(4), f32(1)], { eps: 1 }, /expected the shape \[N, C\]/],
  [
    'a missing attribute',
    'rms_norm',
    [f32(2, 4), f32(4)],
    [f32(2, 4), f32(2)],
    {},
    /lacks the attribute eps/,
  ],
  [
    'keys without past',
    'attention',
    [f32(2, 8), f32(4, 8), f32(4, 8), null, null],
    [f32(2, 8), f32(2, 1), null],
    { batch: 1, heads: 1, kv_heads: 1, head_dim: 8 },
    /needs past/,
  ],
  [
    'heads that do not group',
    'attention',
    [f32(2, 24), f32(2, 16), f32(2, 16), null, null],
    [f32(2, 24), f32(2, 3), null],
    { batch: 1, heads: 3, kv_heads: 2, head_dim: 8 },
    /do not divide/,
  ],
  [
    'an odd head',
    'head_norm_rope',
    [f32(2, 9), f32(3), i32(2)],
    [f32(2, 9), f32(2, 3)],
    { head_dim: 3, eps: 1, theta: 2 },
    /even/,
  ],
  ['a slot outside', 'sum_squares', [f32(4)], [f32(2)], { slot: 2 }, /slot lies outside/],
];
for (const [name, op, inputs, outputs, attrs, message] of MISFITS)
  test(`checks refuse ${name}`, () => {
    assert.throws(
      () => checkOp(opSpec(op), { op, inputs, outputs, attrs }),
      (error: { code?: string; message: string }) => error.code === 'Q4510' && message.test(error.message),
    );
  });

test('the registry is the contract: names, parameters and their order are those of backend.h', () => {
  const header = readFileSync(new URL('../../native/core/backend.h', import.meta.url), 'utf8');
  const section = header.slice(header.indexOf('// ---- forward'), header.indexOf('struct BackendOptions'));
  const methods = new Map(
    [...section.matchAll(/virtual void (\w+)\(([^)]*)\) = 0;/g)].map((match) => [match[1]!, match[2]!]),
  );
  assert.equal([...OPS.keys()].sort(), [...methods.keys()].sort());
  for (const [name, parameters] of methods) {
    const tensors = [...parameters.matchAll(/const Tensor& (\w+)/g)].map((match) => match[1]!);
    const { inputs, outputs } = parseSignature(opSpec(name).signature);
    assert.equal(
      [...inputs, ...outputs].map((argument) => argument.name),
      tensors,
      name,
    );
  }
});

test('add + norm is fused once, and other uses of the sum stay', () => {
  const at = Recorder.start('cpu', 'f32');
  const [x, weight] = [stored(at, 'x', 2, 4), stored(at, 'n', 4)];
  const sum = add(x, x, at.within('sum'));
  const first = rmsNorm(weight, 1e-6)(sum, at.within('first'));
  const second = rmsNorm(weight, 1e-6)(sum, at.within('second'));
  add(add(first, second, at.within('both')), sum, at.within('end'));
  const fused = fuseAddNorm(at.finish('fuse'));
  assert.equal(
    fused.nodes.map(({ op, scope: path }) => `${op} ${path}`),
    ['add_rms_norm first', 'rms_norm second', 'add both', 'add end'],
  );
  assert.is(fused.nodes[0]!.outputs[0], sum);
  assert.is(fused.nodes[1]!.inputs[0], sum);
  assert.is(fused.nodes[3]!.inputs[1], sum);
});

test('pruning keeps what reaches the store', () => {
  const at = Recorder.start('cpu', 'f32');
  const [x, weight, out] = [stored(at, 'x', 2, 4), stored(at, 'w', 4, 4), stored(at, 'out', 2, 4)];
  const used = linear(weight)(x, at.within('used'));
  linear(weight)(used, at.within('unused'));
  at.within('end').emit(opSpec('linear'), [used, weight], { into: { y: out } });
  assert.equal(
    prune(at.finish('prune')).nodes.map(({ scope: path }) => path),
    ['used', 'end'],
  );
});

test('a parameter that nothing gives a gradient to is a bug that is told', () => {
  const at = Recorder.start('cpu', 'f32');
  linear(stored(at, 'w', 4, 4))(stored(at, 'x', 2, 4), at.within('dangling'));
  const target = { name: 'grad.w', dtype: 'f32', shape: [4, 4], purpose: 'gradients' } as const;
  const options = { gradients: new Map([['w', target]]), accumulate: false };
  assert.throws(() => differentiate(at.finish('dangling'), options), code('Q4510'));
});

test('costs count operations and bytes', () => {
  const at = Recorder.start('cpu', 'bf16');
  const weight = at.stored({ name: 'w', dtype: 'nvfp4', shape: [32, 16], purpose: 'weights' });
  const x = at.stored({ name: 'x', dtype: 'bf16', shape: [3, 16], purpose: 'io' });
  linear(weight)(x, at.within('proj'));
  const { program } = lower(at.finish('cost'));
  const bytes = 2 * 3 * 16 + (32 * 16) / 2 + (32 * 16) / 16 + 4 + 2 * 3 * 32;
  assert.equal(opCosts(program), [{ flops: 2 * 3 * 16 * 32, bytes }]);
  const { byOp, ...total } = summarise(program);
  assert.equal(total, { ops: 1, arenaBytes: 256, flops: 3072, bytes });
  assert.equal(byOp, [{ op: 'linear', count: 1, flops: 3072, bytes }]);
  const text = printProgram(program);
  assert.match(text, /linear +proj/);
  assert.match(text, /x bf16\[3,16\]=x, weight nvfp4\[32,16\]=w → y bf16\[3,32\]@0/);
});

test('patterns', () => {
  assert.ok(matches('model.layers.*', 'model.layers.0.mlp.up_proj.weight'));
  assert.ok(matches('*.q_norm.weight', 'model.layers.0.self_attn.q_norm.weight'));
  assert.not(matches('model.layers', 'model.layers.0'));
  assert.not(matches('model.norm', 'modelXnorm'));
  assert.ok(matches('a(b)[c]*', 'a(b)[c]d'));
});

test('the fingerprint is FNV-1a', () => {
  // Published vectors of the 64-bit hash.
  assert.is(fnv1a64(''), 'cbf29ce484222325');
  assert.is(fnv1a64('a'), 'af63dc4c8601ec8c');
  assert.is(fnv1a64('foobar'), '85944171f73967e8');
  const at = Recorder.start('cpu', 'f32');
  add(
    linear(stored(at, 'w', 4, 4))(stored(at, 'x', 2, 4), at.within('p')),
    stored(at, 'x', 2, 4),
    at.within('s'),
  );
  assert.is(canonicalText(at.finish('text')), 'p linear (x[2,4] w[4,4]) {}\ns add (%0.0 x[2,4]) {}');
});

test.run();
