import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { planMemory } from '../../runtime/graph/memory-plan.js';
import { withGradients } from '../../runtime/models/gradients.js';
import type { Model } from '../../runtime/models/model.js';
import { trainProgram } from '../../runtime/models/train-program.js';
import { updateProgram } from '../../runtime/models/update-program.js';
import { elementCount } from '../../runtime/program.js';
import { tinyModel } from './tiny-model.js';

const AUTO = { gradients: 'auto', activation: 'bf16', accumulates: false } as const;

test('gradients are bf16 only where nothing is added to them and activations are bf16', () => {
  const model = tinyModel();
  assert.is(withGradients(model, { ...AUTO, gradients: 'fp32' }), model);
  assert.is(withGradients(model, { ...AUTO, activation: 'f32' }), model);
  assert.is(withGradients(model, { ...AUTO, accumulates: true }), model);
  const narrowed = withGradients(model, AUTO);
  for (const { kind, training } of narrowed.trainable)
    assert.is(training!.grad.dtype, kind === 'projection' ? 'bf16' : 'f32');
  // Lists still share their members: programs look one up in another.
  for (const parameter of [...narrowed.trainable, ...narrowed.requantised])
    assert.ok(narrowed.parameters.includes(parameter));
});

test('frozen parameters still have no gradient', () => {
  const model = withGradients(tinyModel({}, { freeze: ['*.o_proj.weight'] }), AUTO);
  assert.ok(
    model.parameters
      .filter(({ name }) => name.endsWith('o_proj.weight'))
      .every(({ training }) => training === null),
  );
});

test('the programs write and read bf16 gradients, and the plan counts them so', () => {
  const planned = (model: Model): number => {
    const shared = { model, device: 'cuda', activation: 'bf16', batch: 2, tokens: 4 } as const;
    const train = trainProgram({ ...shared, accumulate: false, prefix: 't/' });
    const update = updateProgram({ model, device: 'cuda', maxGradNorm: 1 });
    return planMemory([train, update], []).gradients;
  };
  const model = tinyModel();
  const saved = planned(model) - planned(withGradients(model, AUTO));
  const projections = model.trainable.filter(({ kind }) => kind === 'projection');
  assert.is(
    saved,
    projections.reduce((sum, { shape }) => sum + 2 * elementCount(shape), 0),
  );
});

test.run();
