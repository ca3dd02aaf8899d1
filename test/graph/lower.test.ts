import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { differentiate } from '../../runtime/graph/gradient.js';
import { lower } from '../../runtime/graph/lower.js';
import { liveBytes, type Buffer } from '../../runtime/graph/lifetimes.js';
import { pack } from '../../runtime/graph/pack.js';
import { add } from '../../runtime/graph/ops/add.js';
import { l1Loss } from '../../runtime/graph/ops/l1-loss.js';
import { linear } from '../../runtime/graph/ops/linear.js';
import { SWIGLU } from '../../runtime/graph/ops/swiglu.js';
import { Recorder } from '../../runtime/graph/recorder.js';
import { fuseAddNorm } from '../../runtime/graph/rewrites/fuse-add-norm.js';
import { recomputeBlocks } from '../../runtime/graph/rewrites/recompute.js';
import type { StoreTensor, Tensor } from '../../runtime/graph/types.js';
import type { Program } from '../../runtime/program.js';
import { Machine, normals, randomSource } from './interpret.js';
import { randomGraph, type RandomGraph } from './random-graph.js';
import { spreadOut, verifyProgram } from './verify-program.js';

const gradientOf = (weight: StoreTensor): StoreTensor => ({
  ...weight,
  name: `grad.${weight.name}`,
  purpose: 'gradients',
});

const withGradients = ({ graph, weights }: RandomGraph, accumulate = false) =>
  differentiate(fuseAddNorm(graph), {
    gradients: new Map(weights.map((weight) => [weight.name, gradientOf(weight)])),
    accumulate,
  });

function machineWith(tensors: readonly StoreTensor[], seed: number): Machine {
  const machine = new Machine();
  machine.allocate(tensors);
  const random = randomSource(seed);
  for (const [name, values] of machine.store)
    if (/^(w\d|x|target)/.test(name)) values.set(normals(values.length, 0.6, random));
  machine.write('scale', [0.1]);
  return machine;
}

test('random graphs, differentiated, lower to sound programs that compute what unplanned ones do', () => {
  let inPlace = 0;
  for (let seed = 1; seed <= 60; seed++) {
    const random = randomSource(seed * 7919);
    const made = withGradients(randomGraph(random, 4 + (seed % 20)), seed % 2 === 0);
    const graph = seed % 3 === 0 ? recomputeBlocks(made, (scope) => /^op\d/.exec(scope)?.[0] ?? null) : made;
    const { program, tensors, liveBytes: live } = lower(graph);
    assert.equal(verifyProgram(program), [], `seed ${seed}`);
    assert.ok(
      program.arenaBytes >= live && program.arenaBytes <= 1.25 * live,
      `seed ${seed}: ${program.arenaBytes}`,
    );
    const [planned, spread] = [machineWith(tensors, seed), machineWith(tensors, seed)];
    planned.run(program);
    spread.run(spreadOut(program));
    assert.equal(planned.store, spread.store, `seed ${seed}`);
    assert.ok(Number.isFinite(planned.read('loss')[0]!));
    const offsets = program.tensors.flatMap(({ storage }) =>
      storage.kind === 'arena' ? [storage.offset] : [],
    );
    inPlace += offsets.length - new Set(offsets).size;
  }
  assert.ok(inPlace > 100, 'memory is used again');
});

/** One element of every weight against the central difference of the loss. */
function checkGradients(made: RandomGraph, seed: number): void {
  const { program, tensors } = lower(withGradients(made));
  const forward = lower(made.graph);
  const machine = machineWith(tensors, seed);
  machine.run(program);
  const gradients = new Map(made.weights.map(({ name }) => [name, machine.read(`grad.${name}`).slice()]));
  const loss = (): number => {
    machine.run(forward.program);
    return machine.read('loss')[0]!;
  };
  const random = randomSource(seed);
  for (const { name } of made.weights) {
    const values = machine.read(name);
    const index = Math.floor(random() * values.length);
    const [kept, step] = [values[index]!, 1e-6];
    values[index] = kept + step;
    const above = loss();
    values[index] = kept - step;
    const numeric = (above - loss()) / (2 * step);
    values[index] = kept;
    const analytic = gradients.get(name)![index]!;
    const error = Math.abs(numeric - analytic);
    assert.ok(
      error < 1e-6 + 1e-4 * Math.abs(numeric),
      `seed ${seed}, ${name}[${index}]: ${analytic} is not ${numeric}`,
    );
  }
}

test('gradients of random graphs equal central differences', () => {
  for (let seed = 1; seed <= 25; seed++)
    checkGradients(randomGraph(randomSource(seed * 104729), 3 + (seed % 12)), seed);
});

test('a gradient that two tensors share is not added to in place', () => {
  const at = Recorder.start('cpu', 'f32');
  const weights: StoreTensor[] = [];
  const stored = (name: string, shape: number[]) => at.stored({ name, dtype: 'f32', shape, purpose: 'io' });
  const linearOf = (x: Tensor, scope: string): Tensor => {
    const weight: StoreTensor = {
      name: `w${weights.length}`,
      dtype: 'f32',
      shape: [4, 4],
      purpose: 'weights',
    };
    weights.push(weight);
    return linear(at.stored(weight))(x, at.within(scope));
  };
  const x = stored('x', [2, 4]);
  const [a, b] = [linearOf(x, 'a'), linearOf(x, 'b')];
  // Backwards, `sum` gives one gradient to a and b, and `c` then adds to a's before b's is used.
  const c = linearOf(a, 'c');
  const sum = add(a, b, at.within('sum'));
  const end = add(c, linearOf(sum, 'd'), at.within('end'));
  const operands = {
    x: end,
    target: stored('target', [2, 4]),
    scale: stored('scale', [1]),
    loss: stored('loss', [1]),
  };
  l1Loss(operands, false, at.at('loss', 'loss'));
  for (let seed = 1; seed <= 5; seed++) checkGradients({ graph: at.finish('shared'), weights }, seed);
});

test('the verifier sees what is wrong', () => {
  const { program } = lower(withGradients(randomGraph(randomSource(5), 12)));
  const change = (index: number, offset: number): Program => ({
    ...program,
    tensors: program.tensors.map((tensor, at) =>
      at === index ? { ...tensor, storage: { kind: 'arena', offset } } : tensor,
    ),
  });
  let seen = 0;
  program.tensors.forEach(({ storage }, index) => {
    if (storage.kind !== 'arena') return;
    assert.ok(verifyProgram(change(index, storage.offset + 1)).length > 0);
    if (storage.offset > 0 && verifyProgram(change(index, 0)).some((text) => text.includes('overlap')))
      seen++;
  });
  assert.ok(seen > 5);
  const last = program.ops.at(-1)!;
  const reordered = { ...program, ops: [last, ...program.ops.slice(0, -1)] };
  assert.ok(verifyProgram(reordered).some((text) => text.includes('unwritten')));
});

test('packing stays near the bound on buffers of wild sizes and lives', () => {
  const random = randomSource(99);
  for (let round = 0; round < 20; round++) {
    const buffers: Buffer[] = Array.from({ length: 150 }, () => {
      const first = Math.floor(random() * 200);
      return {
        tensors: [],
        bytes: 256 * Math.ceil(200 * random() ** 4),
        first,
        last: first + Math.floor(random() ** 3 * 80),
      };
    });
    const live = liveBytes(buffers);
    const { offsets, bytes } = pack(buffers, live);
    buffers.forEach((a, i) =>
      buffers.slice(0, i).forEach((b) => {
        const [x, y] = [offsets.get(a)!, offsets.get(b)!];
        const apart = a.last < b.first || b.last < a.first || x + a.bytes <= y || y + b.bytes <= x;
        assert.ok(apart, `round ${round}: ${x} and ${y} overlap`);
      }),
    );
    assert.ok(bytes >= live && bytes <= 1.25 * live, `round ${round}: ${bytes} for ${live}`);
  }
});

test('an output takes over an input only when nothing reads it later', () => {
  const at = Recorder.start('cpu', 'f32');
  const stored = (name: string, shape: number[]) => at.stored({ name, dtype: 'f32', shape, purpose: 'io' });
  const weight = stored('weight', [4, 4]);
  const a = linear(weight)(stored('x', [2, 4]), at.within('a'));
  const b = linear(weight)(a, at.within('b'));
  const c = add(a, b, at.within('c'));
  add(c, a, at.within('d'));
  const { program } = lower(at.finish('small'));
  const offset = (name: string): number => {
    const { storage } = program.tensors.find((tensor) => tensor.name === name)!;
    return storage.kind === 'arena' ? storage.offset : -1;
  };
  assert.is(offset('c'), offset('b'));
  assert.is.not(offset('c'), offset('a'));
  assert.is(program.arenaBytes, 512);
});

test('reading what nothing wrote, and stores of two shapes, are bugs that are caught', () => {
  const bug = (error: { code?: string }): boolean => error.code === 'Q4510';
  const unwritten = Recorder.start('cpu', 'f32');
  const ghost = unwritten.arena('ghost', { dtype: 'f32', shape: [2, 4] });
  add(ghost, ghost, unwritten.within('sum'));
  assert.throws(() => lower(unwritten.finish('unwritten')), bug);
  const shapes = Recorder.start('cpu', 'f32');
  shapes.stored({ name: 'x', dtype: 'f32', shape: [4], purpose: 'io' });
  assert.throws(() => shapes.stored({ name: 'x', dtype: 'bf16', shape: [4], purpose: 'io' }), bug);
  const view = { shape: [2], byteOffset: 8 };
  const whole = shapes.stored({ name: 'y', dtype: 'f32', shape: [4, 4], purpose: 'io' });
  const other = shapes.stored({ name: 'y', dtype: 'f32', shape: [2, 8], purpose: 'io' }, view);
  assert.throws(() => {
    shapes.emit(SWIGLU, [whole, whole]);
    add(other, other, shapes);
    lower(shapes.finish('two shapes'));
  }, bug);
});

test('a program is plain data', () => {
  const { program } = lower(withGradients(randomGraph(randomSource(8), 9)));
  assert.equal(JSON.parse(JSON.stringify(program)), program);
});

test.run();
