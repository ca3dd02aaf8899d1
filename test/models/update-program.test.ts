import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { initProgram } from '../../runtime/models/init-program.js';
import { defaultStorage } from '../../runtime/models/model.js';
import {
  countChangedProgram,
  dequantizeProgram,
  quantizeProgram,
} from '../../runtime/models/quantise-programs.js';
import { updateProgram } from '../../runtime/models/update-program.js';
import { normals, randomSource } from '../graph/interpret.js';
import { machineFor, tinyConfig, tinyModel } from './tiny-model.js';

const HYPER = [0.01, 0.9, 0.95, 1e-8, 0.1, 1 - 0.9, 1 - 0.95, 0];

test('an update moves every master by AdamW and quantises the codes from it', () => {
  const model = tinyModel();
  const programs = [
    updateProgram({ model, device: 'cpu', maxGradNorm: 1 }),
    dequantizeProgram({ model, device: 'cpu' }),
  ];
  const machine = machineFor(model, programs);
  machine.run(programs[1]!.program);
  machine.write('hyper', HYPER);
  machine.write('loss', [2.5]);
  const random = randomSource(3);
  const before = new Map<string, Float64Array>();
  let squares = 0;
  for (const { training } of model.trainable) {
    const grad = normals(machine.read(training!.grad.name).length, 0.1, random);
    machine.write(training!.grad.name, grad);
    before.set(training!.master.name, machine.read(training!.master.name).slice());
    squares += grad.reduce((sum, value) => sum + value * value, 0);
  }
  machine.run(programs[0]!.program);

  const norm = Math.sqrt(squares);
  const stats = [...machine.read('stats')];
  assert.ok(Math.abs(stats[0]! - norm) < 1e-9 * norm && norm > 1);
  assert.equal(stats.slice(2), [1, 2.5]);
  for (const { training, decay, shape } of model.trainable) {
    assert.is(decay, shape.length === 2);
    const [master, grad] = [machine.read(training!.master.name), machine.read(training!.grad.name)];
    master.forEach((value, i) => {
      const g = grad[i]! / (norm + 1e-6);
      const old = before.get(training!.master.name)![i]!;
      // The first step of AdamW: both moments are unbiased to g and g².
      const expected = old * (decay ? 1 - 0.01 * 0.1 : 1) - (0.01 * g) / (Math.abs(g) + 1e-8);
      assert.ok(Math.abs(value - expected) < 1e-12, `${training!.master.name}[${i}]`);
    });
  }
  for (const { weight, training, storage } of model.requantised) {
    assert.is(storage.dtype, 'nvfp4');
    const [codes, master] = [machine.read(weight.name), machine.read(training!.master.name)];
    const distance = Math.hypot(...codes.map((value, i) => value - master[i]!)) / Math.hypot(...master);
    assert.ok(distance > 0.01 && distance < 0.15, `${weight.name} is ${distance} from its master`);
  }
  assert.ok(machine.read('changed').some((count) => count > 0));
});

test('a step whose loss is not finite changes nothing', () => {
  const model = tinyModel();
  const programs = [
    updateProgram({ model, device: 'cpu', maxGradNorm: 1 }),
    quantizeProgram({ model, device: 'cpu' }),
  ];
  const machine = machineFor(model, programs);
  for (const { training } of model.requantised)
    machine.write(
      training!.master.name,
      normals(machine.read(training!.master.name).length, 0.1, randomSource(5)),
    );
  machine.run(programs[1]!.program);
  const outputs = new Set(['stats', 'partials', 'amax', 'changed']);
  const state = () =>
    new Map([...machine.store].filter(([name]) => !outputs.has(name)).map(([k, v]) => [k, [...v]]));
  machine.write('hyper', HYPER);
  machine.write('loss', [NaN]);
  const before = state();
  machine.run(programs[0]!.program);
  assert.is(machine.read('stats')[2], 0);
  assert.equal(state(), before);
});

test('groups share one global scale only when asked', () => {
  for (const shared of [false, true]) {
    const model = tinyModel({}, { sharedGlobalScale: shared });
    const names = model.requantised.map(({ name }) => name);
    const at = (part: string): number => names.indexOf(`model.layers.1.self_attn.${part}.weight`);
    assert.is(at('k_proj'), at('q_proj') + 1);
    assert.is(at('v_proj'), at('q_proj') + 2);
    const slots = model.requantised[at('k_proj')]!.slots!;
    assert.equal(slots, {
      own: at('k_proj'),
      begin: shared ? at('q_proj') : at('k_proj'),
      end: shared ? at('q_proj') + 3 : at('k_proj') + 1,
    });
    const { program } = quantizeProgram({ model, device: 'cpu' });
    const order = program.ops.map(({ op, scope }) => `${op} ${scope}`);
    const k = 'model.layers.1.self_attn.k_proj.weight';
    const v = 'model.layers.1.self_attn.v_proj.weight';
    // Every amax of a group is known before the first of its members is quantised.
    assert.is(order.indexOf(`amax ${v}`) < order.indexOf(`quantize_nvfp4 ${k}`), shared);
  }
});

test('single-level scales use no amax', () => {
  const config = tinyConfig();
  const storage = defaultStorage(config, { quantize: true, plain: 'f32', globalScale: 'none' });
  const model = tinyModel({}, { storage });
  const { program, tensors } = updateProgram({ model, device: 'cpu', maxGradNorm: 0 });
  assert.not(program.ops.some(({ op }) => op.includes('amax')));
  assert.not(tensors.some(({ name }) => name === 'amax'));
  assert.ok(program.ops.filter(({ op }) => op === 'quantize_nvfp4').every(({ inputs }) => inputs[1] === -1));
});

test('the amax of a master comes with its update, and by itself where nothing is updated', () => {
  const model = tinyModel({}, { sharedGlobalScale: true });
  const { program } = updateProgram({ model, device: 'cpu', maxGradNorm: 1, loss: 'scalar' });
  const count = (name: string): number => program.ops.filter(({ op }) => op === name).length;
  // The scalar loss never reaches the head, whose codes and scales then stay.
  assert.is(count('adamw_amax'), model.requantised.length - 1);
  assert.is(count('amax'), 0);
  assert.is(count('adamw'), model.trainable.length - model.requantised.length);
  const slots = program.ops.filter(({ op }) => op === 'adamw_amax').map(({ attrs }) => attrs['slot']);
  assert.is(new Set(slots).size, slots.length);
  const { program: alone } = quantizeProgram({ model, device: 'cpu' });
  assert.is(alone.ops.filter(({ op }) => op === 'amax').length, model.requantised.length);
});

test('the scalar loss leaves the head alone', () => {
  const { program } = updateProgram({ model: tinyModel(), device: 'cpu', maxGradNorm: 1, loss: 'scalar' });
  assert.not(program.ops.some(({ scope }) => scope.startsWith('lm_head')));
  assert.ok(program.ops.some(({ scope }) => scope.startsWith('model.embed_tokens')));
});

for (const masters of ['fp32', 'bf16', 'none'] as const)
  test(`random weights fill every tensor (masters: ${masters})`, () => {
    const config = tinyConfig();
    const storage = defaultStorage(config, { quantize: true, plain: 'bf16' });
    const model = tinyModel({}, { storage, masters, freeze: ['*.o_proj.weight'] });
    const init = initProgram({ model, device: 'cpu', seed: 2 ** 40 + 5, std: 0.02 });
    const machine = machineFor(model, [init]);
    for (const values of machine.store.values()) values.fill(0);
    machine.run(init.program);
    for (const { weight, kind, training } of model.parameters)
      for (const name of [weight.name, training?.master.name ?? weight.name]) {
        const values = machine.read(name);
        if (kind === 'norm')
          assert.ok(
            values.every((value) => value === 1),
            name,
          );
        else assert.ok(values.filter((value) => value !== 0).length > 0.7 * values.length, name);
      }
    const streams = init.program.ops
      .filter(({ op }) => op === 'random_normal')
      .map(({ attrs }) => attrs['stream']);
    assert.is(new Set(streams).size, streams.length);
    const { seed_lo: low, seed_hi: high } = init.program.ops.find(({ op }) => op === 'random_normal')!.attrs;
    assert.equal([low, high], [5, 256]);
  });

test('changed codes are counted against a copy', () => {
  const model = tinyModel();
  const copy = quantizeProgram({ model, device: 'cpu', into: 'initial.' });
  const quantise = quantizeProgram({ model, device: 'cpu' });
  const count = countChangedProgram({ model, device: 'cpu', against: 'initial.' });
  const machine = machineFor(model, [copy, quantise, count]);
  for (const { training } of model.requantised)
    machine.write(
      training!.master.name,
      normals(machine.read(training!.master.name).length, 0.1, randomSource(9)),
    );
  machine.run(copy.program);
  machine.run(quantise.program);
  machine.run(count.program);
  assert.ok(machine.read('changed').every((value) => value === 0));
  const { weight } = model.requantised[3]!;
  machine.read(weight.name)[10]! += 1;
  machine.read(weight.name)[17]! += 1;
  machine.run(count.program);
  assert.equal(
    [...machine.read('changed')].filter((value) => value > 0),
    [2],
  );
  assert.is(machine.read('changed')[3], 2);
});

test.run();
