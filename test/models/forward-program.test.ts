import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { decodeProgram, sampleProgram } from '../../runtime/models/decode-program.js';
import { forwardProgram, type ForwardOptions } from '../../runtime/models/forward-program.js';
import { hiddenStateScopes } from '../../runtime/models/qwen3.js';
import type { Model } from '../../runtime/models/model.js';
import type { Machine } from '../graph/interpret.js';
import { machineFor, tinyModel } from './tiny-model.js';

const TARGET = { device: 'cpu', activation: 'f32' } as const;
const PROMPT = [3, 14, 15, 9, 2, 6, 5, 20];
const VOCABULARY = 23;

const forward = (model: Model, options: Partial<ForwardOptions>) =>
  forwardProgram({ model, ...TARGET, batch: 1, tokens: PROMPT.length, ...options });

const row = (logits: Float64Array, at: number): number[] => [
  ...logits.slice(at * VOCABULARY, (at + 1) * VOCABULARY),
];
const near = (ours: ArrayLike<number>, theirs: ArrayLike<number>, message: string): void => {
  assert.is(ours.length, theirs.length, message);
  for (let i = 0; i < ours.length; i++)
    assert.ok(Math.abs(ours[i]! - theirs[i]!) < 1e-12, `${message}: ${ours[i]} and ${theirs[i]} at ${i}`);
};

/** Logits of every prompt token without a cache: what all routes must give. */
function replay(model: Model): Float64Array {
  const whole = forward(model, {});
  const machine = machineFor(model, [whole]);
  machine.write('in.ids', PROMPT);
  machine.write('in.positions', [...PROMPT.keys()]);
  machine.run(whole.program);
  return machine.read('out.logits');
}

function feed(machine: Machine, prefix: string, tokens: readonly number[], past: number): void {
  machine.write(`${prefix}in.ids`, tokens);
  machine.write(
    `${prefix}in.positions`,
    tokens.map((_, index) => past + index),
  );
  machine.write(`${prefix}in.past`, [past]);
}

for (const pieces of [[8], [3, 5], [1, 4, 3], [1, 1, 1, 1, 1, 1, 1, 1]])
  test(`prefill in pieces of ${pieces.join(' + ')} gives the logits of the whole`, () => {
    const model = tinyModel();
    const expected = replay(model);
    const cache = { capacity: 12, rows: 1 };
    const programs = new Map(
      [...new Set(pieces)].map((tokens) => [
        tokens,
        forward(model, { tokens, cache, prefix: `p${tokens}/` }),
      ]),
    );
    const machine = machineFor(model, [...programs.values()]);
    let past = 0;
    for (const tokens of pieces) {
      feed(machine, `p${tokens}/`, PROMPT.slice(past, past + tokens), past);
      machine.run(programs.get(tokens)!.program);
      const logits = machine.read(`p${tokens}/out.logits`);
      near(logits, expected.slice(past * VOCABULARY, (past + tokens) * VOCABULARY), `from ${past}`);
      past += tokens;
    }
  });

test('rows of one batched cache do not touch each other, and decoding them continues as a replay would', () => {
  const model = tinyModel();
  const prompts = [PROMPT, PROMPT.slice(2, 5), [7]];
  const cache = { capacity: 12, rows: 3 };
  const logitsInto = (at: number) => ({ name: 'decode/out.logits', rows: 3, row: at });
  const prefills = prompts.map((prompt, at) =>
    forward(model, {
      tokens: prompt.length,
      cache: { ...cache, row: at },
      logits: 1,
      logitsInto: logitsInto(at),
      prefix: `row${at}/`,
    }),
  );
  const decode = decodeProgram({ model, ...TARGET, batch: 3, cache, prefix: 'decode/' });
  const first = sampleProgram({ model, ...TARGET, batch: 3, prefix: 'decode/' });
  const machine = machineFor(model, [...prefills, decode, first]);
  prefills.forEach(({ program }, at) => {
    feed(machine, `row${at}/`, prompts[at]!, 0);
    machine.write(`row${at}/in.rows`, [prompts[at]!.length - 1]);
    machine.run(program);
  });
  machine.write(
    'decode/in.past',
    prompts.map((prompt) => prompt.length),
  );
  machine.run(first.program);
  const texts = prompts.map((prompt) => [...prompt]);
  const collect = (): void =>
    machine.read('decode/in.ids').forEach((token, at) => void texts[at]!.push(token));
  collect();
  for (let step = 0; step < 3; step++) {
    machine.run(decode.program);
    collect();
  }
  assert.equal(
    [...machine.read('decode/in.past')],
    prompts.map((prompt) => prompt.length + 3),
  );

  texts.forEach((text, at) => {
    const whole = forward(model, { tokens: text.length });
    const replayed = machineFor(model, [whole]);
    replayed.write('in.ids', text);
    replayed.write('in.positions', [...text.keys()]);
    replayed.run(whole.program);
    const logits = replayed.read('out.logits');
    for (let i = prompts[at]!.length; i < text.length; i++) {
      const before = row(logits, i - 1);
      assert.is(text[i], before.indexOf(Math.max(...before)), `row ${at}, token ${i}`);
    }
    near(row(machine.read('decode/out.logits'), at), row(logits, text.length - 2), `row ${at}`);
  });
});

test('packed samples see nothing of each other', () => {
  const model = tinyModel();
  const program = forward(model, { attendFrom: true });
  const machine = machineFor(model, [program]);
  machine.write('in.positions', [0, 1, 2, 0, 1, 2, 3, 4]);
  machine.write('in.attend_from', [0, 0, 0, 3, 3, 3, 3, 3]);
  const logitsAfter = (ids: readonly number[]): Float64Array => {
    machine.write('in.ids', ids);
    machine.run(program.program);
    return machine.read('out.logits').slice();
  };
  const [one, other] = [logitsAfter(PROMPT), logitsAfter([1, 1, 1, ...PROMPT.slice(3)])];
  near(one.slice(3 * VOCABULARY), other.slice(3 * VOCABULARY), 'the second sample');
  assert.not.equal([...one.slice(0, VOCABULARY)], [...other.slice(0, VOCABULARY)]);
});

test('chosen rows of logits equal those of all; without logits only the caches are filled', () => {
  const model = tinyModel();
  const expected = replay(model);
  const chosen = forward(model, { logits: 2 });
  const silent = forward(model, { logits: 'none', cache: { capacity: 8, rows: 1 } });
  const machine = machineFor(model, [chosen, silent]);
  feed(machine, '', PROMPT, 0);
  machine.write('in.rows', [7, 2]);
  machine.run(chosen.program);
  near(machine.read('out.logits'), [...row(expected, 7), ...row(expected, 2)], 'rows 7 and 2');
  machine.run(silent.program);
  assert.ok(machine.read('cache.v.1').every((value) => value !== 0));
  const last = silent.program.ops.at(-1)!;
  assert.is(last.op, 'kv_append');
  assert.not(
    silent.program.ops.some(({ scope }) => scope === 'lm_head' || scope.startsWith('model.layers.1.mlp')),
  );
});

test('taps are the hidden states, and do not change the logits', () => {
  const model = tinyModel();
  const taps = hiddenStateScopes(model.config);
  assert.equal(taps, ['model.embed_tokens', 'model.layers.0', 'model.layers.1']);
  const program = forward(model, { taps: [...taps, '*.o_proj'], prefix: 'tapped/' });
  const machine = machineFor(model, [program]);
  machine.write('tapped/in.ids', PROMPT);
  machine.write('tapped/in.positions', [...PROMPT.keys()]);
  machine.run(program.program);
  near(machine.read('tapped/out.logits'), replay(model), 'logits');
  const embedding = machine.read('tapped/tap.model.embed_tokens');
  near(
    embedding.slice(0, 16),
    machine.read('model.embed_tokens.weight').slice(3 * 16, 4 * 16),
    'the first token',
  );
  assert.is(
    program.taps.get('model.layers.0.self_attn.o_proj'),
    'tapped/tap.model.layers.0.self_attn.o_proj',
  );
  assert.ok(machine.read('tapped/tap.model.layers.1').every((value) => value !== 0));
});

test('training and inference run the same forward ops', () => {
  const model = tinyModel();
  const ops = (options: Partial<ForwardOptions>): string[] =>
    forward(model, options)
      .program.ops.filter(({ op }) => op !== 'kv_append')
      .map(({ op, scope }) => `${scope} ${op}`);
  assert.equal(ops({ cache: { capacity: 8, rows: 1 } }), ops({ attendFrom: true }));
  assert.ok(ops({}).some((op) => op.endsWith('add_rms_norm')) && !ops({}).some((op) => op.endsWith(' add')));
});

test('a cache row outside the cache is refused', () => {
  assert.throws(
    () => forward(tinyModel(), { cache: { capacity: 8, rows: 2, row: 2 } }),
    (error: { code?: string }) => error.code === 'Q4510',
  );
});

test.run();
