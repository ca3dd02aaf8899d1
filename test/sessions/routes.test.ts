/** However tokens go through the model, they come out alike. */
import { test } from 'uvu';
import * as assert from 'uvu/assert';

import { openEngine } from '../../runtime/engine/engine.js';
import {
  observeCached,
  observeForward,
  observeTraining,
  type Observation,
} from '../../runtime/sessions/observation.js';
import { integers, uniformSource } from '../native/random-values.js';
import { qwen3 } from '../oracle/qwen3.js';
import { goldenCase, type CaseOptions } from '../stages/golden-case.js';
import { loadedModel } from '../stages/loaded-model.js';
import { folder } from '../stages/q4run.js';
import { relativeL2 } from '../stages/tensors.js';

const TOKENS = 150;
const CASES: readonly [name: string, options: CaseOptions][] = [
  ['a separate head', { seed: 31, greedyPrompt: null, tokens: 1, batch: 1 }],
  [
    'a tied head',
    { seed: 32, greedyPrompt: null, tokens: 1, batch: 1, config: { tie_word_embeddings: true } },
  ],
  ['one kv head', { seed: 33, greedyPrompt: null, tokens: 1, batch: 1, config: { num_key_value_heads: 1 } }],
];

function near(a: Observation, b: Observation, what: string): void {
  assert.equal([...a.taps.keys()], [...b.taps.keys()]);
  for (const [scope, values] of a.taps) {
    const error = relativeL2(values, b.taps.get(scope)!);
    assert.ok(error <= 1e-5, `${what}: ${scope} ${error}`);
  }
  const error = relativeL2(a.logits, b.logits);
  assert.ok(error <= 1e-5, `${what}: logits ${error}`);
}
const bits = (values: Float32Array): Int32Array =>
  new Int32Array(values.buffer, values.byteOffset, values.length);
function same(a: Observation, b: Observation, what: string): void {
  assert.equal([...a.taps.keys()], [...b.taps.keys()]);
  for (const [scope, values] of [...a.taps, ['logits', a.logits] as const]) {
    const other = scope === 'logits' ? b.logits : b.taps.get(scope)!;
    assert.is(
      Buffer.compare(Buffer.from(bits(values).buffer), Buffer.from(bits(other).buffer)),
      0,
      `${what}: ${scope}`,
    );
  }
}

/** Pieces of random length that add up. */
function pieces(seed: number, longest: number): number[] {
  const uniform = uniformSource(seed);
  const found: number[] = [];
  for (let left = TOKENS; left > 0; left -= found.at(-1)!)
    found.push(Math.min(left, 1 + Math.floor(uniform() * longest)));
  return found;
}

for (const reference of [false, true])
  for (const [name, options] of CASES)
    test(`${name}, ${reference ? 'reference' : 'fast'}: one piece, random pieces, token by token and training agree`, async () => {
      const { files, config, weights } = goldenCase(options);
      const cwd = folder(files);
      const engine = openEngine({ device: 'cpu', threads: 2, reference });
      const model = await loadedModel(engine, cwd, { masters: name === 'a tied head' ? 'none' : 'fp32' });
      const ids = integers(TOKENS, 7, config.vocab_size);
      const held = engine.memory.allocatedBytes;
      const whole = await observeForward(engine, model, ids, 1);
      const oracle = qwen3(config, weights, [...ids]);
      assert.ok(relativeL2(whole.logits, oracle.logits) <= 1e-5);

      const once = await observeCached(engine, model, ids, [TOKENS]);
      near(once, whole, 'a cache filled at once');
      for (const [seed, longest] of [
        [1, 7],
        [2, 40],
        [3, 140],
      ] as const)
        near(
          await observeCached(engine, model, ids, pieces(seed, longest)),
          whole,
          `pieces up to ${longest}`,
        );
      near(
        await observeCached(
          engine,
          model,
          ids,
          Array.from(ids, () => 1),
        ),
        whole,
        'token by token',
      );

      // On the same tokens in one piece not one bit differs.
      const training = await observeTraining(engine, model, ids);
      same(training, once, 'training and a cache filled at once');
      same(training, whole, 'training and the plain forward');
      assert.is(engine.memory.allocatedBytes, held, 'routes give back what they took');
      model.dispose();
      engine.dispose();
    });

test('a batch is its sequences side by side', async () => {
  const { files, config } = goldenCase({ seed: 34, greedyPrompt: null, tokens: 1, batch: 1 });
  const engine = openEngine({ device: 'cpu', threads: 2 });
  const model = await loadedModel(engine, folder(files));
  const ids = integers(3 * 20, 8, config.vocab_size);
  const together = await observeForward(engine, model, ids, 3);
  for (let row = 0; row < 3; row++) {
    const alone = await observeForward(engine, model, ids.slice(row * 20, row * 20 + 20), 1);
    const size = alone.logits.length;
    assert.ok(relativeL2(alone.logits, together.logits.subarray(row * size, row * size + size)) <= 1e-6);
  }
  model.dispose();
  engine.dispose();
});

test.run();
