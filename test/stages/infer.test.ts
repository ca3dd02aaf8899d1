/** Asking the shipped model: sampling, stop strings, conversations, expectations, caches. */
import { cpSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'uvu';
import * as assert from 'uvu/assert';

import { loadModelText, type ModelText } from '../../runtime/text/model-text.js';
import { stageFiles } from '../../runtime/runner/worker/stage-files.js';
import { runHere, type Here, type HereOptions } from './in-process.js';
import { errorsIn, folder, outputsOf, q4run, ROOT } from './q4run.js';

const MODEL = join(ROOT, 'pipelines', 'assets', 'qwen3-tiny');
const CAPITAL = 'What is the capital of Japan?';
const SKY = '天空是什麼顏色？';

interface Answer {
  readonly prompt: string;
  readonly text: string;
  readonly tokens: number;
  readonly prompt_tokens: number;
  readonly finish_reason: string;
}

/** A pipeline that asks with these keys, as JSON (which is YAML). */
const asking = (keys: object, more = ''): string => `version: 1
name: ask
stages:
  - { id: weights, uses: load-dat, with: { weights: "${MODEL}/model.dat", config: "${MODEL}/config.json", tokenizer: "${MODEL}" } }
  - { id: model, uses: build-model, needs: [weights], with: { masters: none } }
  - { id: ask, uses: infer, needs: [model], with: ${JSON.stringify({ prompts: [CAPITAL], max_tokens: 24, temperature: 0, ...keys })} }
${more}`;

const run = (keys: object, options: HereOptions = {}): Promise<Here> =>
  runHere(folder({ 'p.yaml': asking(keys) }), 'p.yaml', 'run', options);

async function ask(keys: object, options: HereOptions = {}): Promise<readonly Answer[]> {
  const here = await run(keys, options);
  assert.equal(here.errors, []);
  return here.outputs<{ texts: Answer[] }>('ask').texts;
}
const texts = async (keys: object, options: HereOptions = {}): Promise<string[]> =>
  (await ask(keys, options)).map(({ text }) => text);

let text: ModelText;
test.before(async () => {
  text = await loadModelText(stageFiles, MODEL, 3072);
});

test('temperature 0 gives the same answer whatever the seed, the batch and the neighbours', async () => {
  const prompts = [CAPITAL, SKY, 'Who are you?'];
  const expected = await texts({ prompts });
  assert.ok(expected.every((answer) => answer.length > 0));
  assert.equal(await texts({ prompts, seed: 1 }), expected);
  assert.equal(await texts({ prompts, batch_size: 1 }), expected);
  assert.equal(await texts({ prompts, batch_size: 2 }), expected);
  assert.equal(await texts({ prompts: [SKY] }), [expected[1]]);
});

test('sampling follows the seed, and the seed of the run without one', async () => {
  const hot = { temperature: 6, top_k: 0, top_p: 1, max_tokens: 32 };
  const first = await texts({ ...hot, seed: 11 });
  assert.equal(await texts({ ...hot, seed: 11 }), first);
  assert.not.equal(await texts({ ...hot, seed: 12 }), first);
  // The upper half of a seed counts too.
  assert.not.equal(await texts({ ...hot, seed: 11 + 2 ** 32 }), first);
  assert.equal(await texts(hot, { sets: ['runtime.seed=11'] }), first);
  const answers = await texts({ ...hot, seed: 11, prompts: [CAPITAL, SKY, CAPITAL + ' '] });
  assert.is(answers[0], first[0], 'the first row draws as it does alone');
});

test('cuts that leave one token are greedy', async () => {
  const expected = await texts({});
  const hot = { temperature: 2, seed: 3 };
  assert.equal(await texts({ ...hot, top_k: 1 }), expected);
  assert.equal(await texts({ ...hot, top_k: 0, top_p: 1e-6 }), expected);
  assert.equal(await texts({ ...hot, top_k: 0, top_p: 1, min_p: 1 }), expected);
});

test('a strong repetition penalty repeats no token of prompt or answer', async () => {
  const content = 'What can you do?';
  const keys = { max_tokens: 40, prompts: [content] };
  const prompt = text.template!.encode([{ role: 'user', content }], { addGenerationPrompt: true });
  const repeats = (answer: string): number => {
    const ids = [...prompt, ...text.tokenizer.encodeText(answer)];
    return ids.length - new Set(ids).size;
  };
  const [free] = await texts(keys);
  assert.ok(repeats(free!) > repeats(''), `repeats nothing by itself: ${free!}`);
  const [answer] = await texts({ ...keys, repetition_penalty: 10 });
  assert.is(repeats(answer!), repeats(''), answer!);
});

test('a stop string ends the answer wherever tokens cut it, and is never shown', async () => {
  const [whole] = await ask({ max_tokens: 40 });
  const { text: answer } = whole!;
  assert.ok(answer.length > 10);
  const ids = text.tokenizer.encodeText(answer);
  // From the middle of one token to the middle of the next, over three tokens, one character, all of it.
  const pieces = ids.map((id) => text.tokenizer.decode([id]));
  const starts = pieces.reduce<number[]>((at, piece) => [...at, at.at(-1)! + piece.length], [0]);
  const cuts = [
    [starts[1]! - 1, starts[1]! + 1],
    [starts[1]!, starts[4]! - 1],
    [2, 3],
    [0, answer.length],
    [answer.length - 1, answer.length],
  ] as const;
  for (const [from, to] of cuts) {
    const stop = answer.slice(from, to);
    const here = await run({ max_tokens: 40, stop: ['no such text', stop] });
    assert.equal(here.errors, []);
    const [cut] = here.outputs<{ texts: Answer[] }>('ask').texts;
    assert.is(cut!.text, answer.slice(0, answer.indexOf(stop)), `stop ${JSON.stringify(stop)}`);
    assert.is(cut!.finish_reason, 'stop');
    const shown = here.events.filter(({ ev }) => ev === 'token').map((event) => String(event['text']));
    assert.is(shown.join(''), cut!.text);
  }
});

test('what is held back for a stop string that never comes is shown at the end', async () => {
  const [whole] = await texts({ max_tokens: 40 });
  const here = await run({ max_tokens: 40, stop: [`${whole!.slice(-4)} and more`, `${whole}!`] });
  assert.is(here.outputs<{ texts: Answer[] }>('ask').texts[0]!.text, whole);
  const shown = here.events.filter(({ ev }) => ev === 'token').map((event) => String(event['text']));
  assert.is(shown.join(''), whole);
  const silent = await run({ max_tokens: 40, stream: false });
  assert.is(silent.events.filter(({ ev }) => ev === 'token').length, 0);
});

test('max_tokens counts', async () => {
  for (const max_tokens of [1, 2, 5]) {
    const [answer] = await ask({ max_tokens });
    assert.is(answer!.tokens, max_tokens);
    assert.is(answer!.finish_reason, 'length');
  }
});

test('a conversation on one cache answers as the whole transcript does afresh', async () => {
  const prompts = [CAPITAL, SKY, 'And who are you?'];
  const answers = await texts({ prompts, conversation: true, system: 'Be brief.' });
  assert.is(answers.length, 3);
  for (let turn = 1; turn < prompts.length; turn++) {
    const messages = prompts
      .slice(0, turn + 1)
      .flatMap((content, i) => [
        { role: 'user', content },
        ...(i < turn ? [{ role: 'assistant', content: answers[i]! }] : []),
      ]);
    const keys = { prompts: undefined, messages, system: 'Be brief.' };
    assert.equal(await texts(keys), [answers[turn]], `turn ${turn + 1}`);
  }
});

test('a prompt of many pieces is answered as in one', async () => {
  const words = Array.from({ length: 260 }, (_, i) => `${CAPITAL} ${i}`).join(' ');
  const keys = { prompts: [words.slice(0, 4000)], raw: true, max_tokens: 6 };
  const [answer] = await ask(keys);
  assert.ok(answer!.prompt_tokens > 1024, `${answer!.prompt_tokens} tokens`);
  assert.equal(await texts({ ...keys, cache: { capacity: 2048 } }), [answer!.text]);
});

test('a prompt that leaves no room in the cache is told with its place', async () => {
  const cwd = folder({ 'p.yaml': asking({ cache: { capacity: 8 } }) });
  const outcome = await q4run(cwd, 'p.yaml', '--run-dir', 'run');
  assert.is(outcome.code, 5, outcome.err);
  const [error] = errorsIn(outcome);
  assert.is(error!['code'], 'Q4504');
  assert.is(error!['line'], 6);
  assert.match(String(error!['hint']), /capacity/);
  const long = 'the capital '.repeat(1500);
  const here = await run({ prompts: [long], raw: true });
  assert.is(here.errors[0]?.['code'], 'Q4504');
  assert.match(String(here.errors[0]?.['message']), /2048/);
  assert.not.match(String(here.errors[0]?.['hint']), /raise cache\.capacity/, 'the model ends there');
});

test('the cache as large as the answer needs and not larger still answers', async () => {
  const [free] = await ask({ max_tokens: 8 });
  const capacity = free!.prompt_tokens + 8;
  assert.equal(await texts({ max_tokens: 8, cache: { capacity } }), [free!.text]);
  const [short] = await ask({ max_tokens: 8, cache: { capacity: capacity - 3 } });
  assert.is(short!.tokens, 5);
  assert.is(short!.finish_reason, 'length');
  assert.ok(free!.text.startsWith(short!.text));
});

test('expectations: what holds passes; what does not is exit 6, with the answers reported', async () => {
  const [answer] = await texts({});
  const word = answer!.split(' ')[0]!;
  const good = [
    { prompt: CAPITAL, contains: word },
    { prompt: CAPITAL, matches: '^\\S' },
    { prompt: SKY, not_matches: 'no such text' },
  ];
  const asked = await ask({ expect: good });
  assert.equal(
    asked.map(({ prompt }) => prompt),
    [CAPITAL, SKY],
    'what only an expectation names is asked too',
  );
  const bad = [...good, { prompt: CAPITAL, contains: 'no such text' }, { prompt: SKY, not_matches: '.' }];
  const cwd = folder({
    'p.yaml': asking(
      { expect: bad },
      '  - { id: later, uses: infer, needs: [ask], with: { prompts: [hi] } }\n',
    ),
  });
  const outcome = await q4run(cwd, 'p.yaml', '--run-dir', 'run');
  assert.is(outcome.code, 6, outcome.err);
  const [error] = errorsIn(outcome);
  assert.is(error!['code'], 'Q4602');
  assert.match(String(error!['message']), /2 of 5 answers/);
  const outputs = outputsOf<{ texts: Answer[]; failed_expectations: string[] }>(join(cwd, 'run'), 'ask');
  assert.is(outputs.texts.length, 2);
  assert.is(outputs.failed_expectations.length, 2);
  assert.ok(!outcome.events.some(({ ev, stage }) => ev === 'stage-start' && stage === 'later'));
});

test('a model without tokenizer or template says what to do', async () => {
  const cwd = folder({ 'p.yaml': asking({}).replaceAll(MODEL, 'm') });
  cpSync(MODEL, join(cwd, 'm'), { recursive: true });
  const config = join(cwd, 'm', 'tokenizer_config.json');
  const plain = JSON.parse(await stageFiles.readText(config)) as Record<string, unknown>;
  delete plain['chat_template'];
  writeFileSync(config, JSON.stringify(plain));
  const untold = await runHere(cwd, 'p.yaml', 'a');
  assert.is(untold.errors[0]?.['code'], 'Q4301');
  assert.match(String(untold.errors[0]?.['hint']), /raw: true/);
  const raw = await runHere(cwd, 'p.yaml', 'b', { sets: ['stages.ask.with.raw=true'] });
  assert.equal(raw.errors, []);
  writeFileSync(join(cwd, 'p.yaml'), asking({}).replaceAll(MODEL, 'm').replace(', tokenizer: "m"', ''));
  rmSync(join(cwd, 'm', 'tokenizer.json'));
  const none = await runHere(cwd, 'p.yaml', 'c');
  assert.is(none.errors[0]?.['code'], 'Q4505');
  assert.match(String(none.errors[0]?.['hint']), /tokenizer/);
});

test('a stop while answering is exit 130, at once', async () => {
  const controller = new AbortController();
  const here = await run(
    { max_tokens: 1500, stop: [], temperature: 3, top_k: 0, top_p: 1, raw: true },
    {
      signal: controller.signal,
      onEvent: ({ ev }) => {
        if (ev === 'token') controller.abort('interrupt');
      },
    },
  );
  assert.is(here.exit, 130);
  assert.is(here.errors[0]?.['code'], 'Q4704');
});

test.run();
