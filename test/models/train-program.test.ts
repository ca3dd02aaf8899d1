import { test } from 'uvu';
import * as assert from 'uvu/assert';
import {
  trainedBy,
  trainGraph,
  trainProgram,
  type TrainProgramOptions,
} from '../../runtime/models/train-program.js';
import type { Model } from '../../runtime/models/model.js';
import type { Machine } from '../graph/interpret.js';
import { normals, randomSource } from '../graph/interpret.js';
import { machineFor, randomBatch, tinyModel, writeBatch } from './tiny-model.js';

const SHAPE = { device: 'cpu', activation: 'f32', batch: 2, tokens: 6 } as const;
const build = (model: Model, options: Partial<TrainProgramOptions> = {}) =>
  trainProgram({ model, ...SHAPE, accumulate: false, ...options });

const gradientsOf = (machine: Machine): Map<string, Float64Array> =>
  new Map(
    [...machine.store]
      .filter(([name]) => name.startsWith('grad.'))
      .map(([name, values]) => [name, values.slice()]),
  );

const compare = (ours: Map<string, Float64Array>, theirs: Map<string, Float64Array>, tolerance = 0): void => {
  assert.equal([...ours.keys()], [...theirs.keys()]);
  for (const [name, values] of ours)
    values.forEach((value, i) => {
      const other = theirs.get(name)![i]!;
      assert.ok(
        Math.abs(value - other) <= tolerance * (1 + Math.abs(other)),
        `${name}[${i}]: ${value} and ${other}`,
      );
    });
};

/** Central differences of the evaluation program's loss, at a few elements of every parameter. */
function checkAgainstDifferences(
  model: Model,
  loss: 'cross_entropy' | 'scalar',
  options: Partial<TrainProgramOptions> = {},
) {
  const train = build(model, { loss, ...options });
  const evaluate = build(model, { loss, gradients: false });
  const machine = machineFor(model, [train, evaluate]);
  writeBatch(machine, randomBatch(model, SHAPE.batch, SHAPE.tokens), 1 / 9);
  if (loss === 'scalar') machine.write('in.target', normals(12 * 16, 1, randomSource(5)));
  machine.run(train.program);
  const trained = machine.read('loss')[0]!;
  const gradients = gradientsOf(machine);
  const lossNow = (): number => {
    machine.run(evaluate.program);
    return machine.read('loss')[0]!;
  };
  assert.ok(
    Math.abs(trained - lossNow()) < 1e-14 && trained > 0.1,
    'training and evaluation compute the same loss',
  );
  const random = randomSource(11);
  let largest = 0;
  for (const { weight, training, name } of trainedBy(model, loss)) {
    const values = machine.read(weight.name);
    const analytic = gradients.get(training!.grad.name)!;
    for (let draw = 0; draw < 5; draw++) {
      const at = Math.floor(random() * values.length);
      const [kept, step] = [values[at]!, 1e-5];
      values[at] = kept + step;
      const above = lossNow();
      values[at] = kept - step;
      const numeric = (above - lossNow()) / (2 * step);
      values[at] = kept;
      largest = Math.max(largest, Math.abs(numeric));
      const error = Math.abs(numeric - analytic[at]!);
      assert.ok(error < 1e-8 + 1e-6 * Math.abs(numeric), `${name}[${at}]: ${analytic[at]} is not ${numeric}`);
    }
  }
  assert.ok(largest > 1e-3, 'the gradients are not all zero');
}

test('gradients equal central differences, with a head of its own', () => {
  checkAgainstDifferences(tinyModel(), 'cross_entropy');
});

test('gradients equal central differences, with the embedding as the head', () => {
  checkAgainstDifferences(tinyModel({ tie_word_embeddings: true }), 'cross_entropy');
});

test('gradients equal central differences, with blocks recomputed', () => {
  checkAgainstDifferences(tinyModel(), 'cross_entropy', { recompute: 'block' });
});

test('gradients of the scalar loss equal central differences, and never reach the head', () => {
  const model = tinyModel();
  checkAgainstDifferences(model, 'scalar');
  assert.not(trainedBy(model, 'scalar').some(({ name }) => name === 'lm_head.weight'));
});

test('recomputing blocks gives the same bits and needs less memory', () => {
  const model = tinyModel({ num_hidden_layers: 4 });
  const run = (recompute: 'none' | 'block') => {
    const train = build(model, { recompute });
    const machine = machineFor(model, [train]);
    writeBatch(machine, randomBatch(model, SHAPE.batch, SHAPE.tokens), 1 / 9);
    machine.run(train.program);
    return {
      gradients: gradientsOf(machine),
      bytes: train.program.arenaBytes,
      loss: machine.read('loss')[0],
    };
  };
  const [all, block] = [run('none'), run('block')];
  compare(all.gradients, block.gradients);
  assert.is(all.loss, block.loss);
  assert.ok(block.bytes < 0.6 * all.bytes, `${block.bytes} of ${all.bytes} bytes`);
});

test('with blocks recomputed, one tensor a layer waits for the backward pass', () => {
  const { nodes } = trainGraph({ model: tinyModel(), ...SHAPE, accumulate: false, recompute: 'block' });
  const before = new Set(nodes.filter(({ phase }) => phase !== 'backward').flatMap(({ outputs }) => outputs));
  const waiting = new Set<string>();
  for (const { phase, inputs } of nodes)
    for (const input of inputs)
      if (phase === 'backward' && input?.place.kind === 'arena' && before.has(input)) waiting.add(input.name);
  assert.equal([...waiting].sort(), [
    'lm_head.dx',
    'model.embed_tokens',
    'model.layers.0.residual_mlp',
    'model.layers.1.residual_mlp',
    'model.norm.rstd',
  ]);
});

for (const tied of [false, true])
  test(`two micro batches of one row equal one of two (tied: ${tied})`, () => {
    const model = tinyModel({ tie_word_embeddings: tied });
    const whole = build(model);
    const first = build(model, { batch: 1, prefix: 'one/' });
    const second = build(model, { batch: 1, prefix: 'one/', accumulate: true });
    const batch = randomBatch(model, 2, 6);
    const expected = machineFor(model, [whole]);
    writeBatch(expected, batch, 1 / 9);
    expected.run(whole.program);
    const machine = machineFor(model, [first, second]);
    // What an overwriting program finds must not matter.
    for (const [name, values] of machine.store)
      if (name.startsWith('grad.') || name === 'loss') values.fill(1e3);
    [first, second].forEach(({ program }, row) => {
      const part = (values: number[]): number[] => values.slice(row * 6, row * 6 + 6);
      const { ids, positions, attendFrom, labels } = batch;
      const rows = {
        ids: part(ids),
        positions: part(positions),
        attendFrom: part(attendFrom),
        labels: part(labels),
      };
      writeBatch(machine, rows, 1 / 9, 'one/');
      machine.run(program);
    });
    compare(gradientsOf(machine), gradientsOf(expected), 1e-12);
    assert.ok(Math.abs(machine.read('loss')[0]! - expected.read('loss')[0]!) < 1e-12);
  });

test('frozen parameters get no gradient op, the others the same gradients as before', () => {
  const freeze = ['model.embed_tokens.*', 'model.layers.0.*', '*.q_norm.weight'];
  const frozen = tinyModel({}, { freeze });
  const train = build(frozen);
  const machine = machineFor(frozen, [train]);
  writeBatch(machine, randomBatch(frozen, 2, 6), 1 / 9);
  machine.run(train.program);
  const full = tinyModel();
  const fullTrain = build(full);
  const reference = machineFor(full, [fullTrain]);
  writeBatch(reference, randomBatch(full, 2, 6), 1 / 9);
  reference.run(fullTrain.program);
  const gradients = gradientsOf(machine);
  const expected = new Map([...gradientsOf(reference)].filter(([name]) => gradients.has(name)));
  assert.is(gradients.size, frozen.trainable.length);
  compare(gradients, expected);
  const backward = train.program.ops.filter(({ phase }) => phase === 'backward');
  assert.not(
    backward.some(({ scope }) => scope.startsWith('model.layers.0.') || scope === 'model.embed_tokens'),
  );
  assert.ok(
    backward.some(
      ({ scope, op }) => scope.endsWith('1.self_attn.q_norm') && op === 'head_norm_rope_backward',
    ),
  );
});

test('with only the head training, nothing runs backwards but the loss', () => {
  const model = tinyModel({}, { freeze: ['model.*'] });
  const { program } = build(model);
  assert.is(program.ops.filter(({ phase }) => phase === 'backward').length, 0);
  const loss = program.ops.find(({ op }) => op === 'linear_cross_entropy')!;
  // The contract wants dx wherever dweight is.
  assert.ok(loss.outputs[1]! >= 0 && loss.outputs[2]! >= 0);
});

test('taps of a training program hold what its forward pass made', () => {
  const model = tinyModel();
  const taps = ['model.embed_tokens', 'model.layers.0', 'model.layers.1', 'model.norm'];
  const [tapped, plain] = [build(model, { taps }), build(model)];
  const machine = machineFor(model, [tapped, plain]);
  writeBatch(machine, randomBatch(model, 2, 6), 1 / 9);
  machine.run(tapped.program);
  const gradients = gradientsOf(machine);
  machine.run(plain.program);
  compare(gradients, gradientsOf(machine));
  for (const scope of taps) {
    const values = machine.read(tapped.taps.get(scope)!);
    assert.is(values.length, 12 * 16);
    assert.ok(values.every(Number.isFinite) && values.some((value) => value !== 0), scope);
  }
  assert.throws(
    () => build(model, { taps: ['model.layers.9'] }),
    (error: { code?: string }) => error.code === 'Q4515',
  );
});

test.run();
