import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { parse } from 'yaml';
import { readFileSync } from 'node:fs';
import { parseQwen3Config } from '../../runtime/models/config.js';
import { readData } from '../../runtime/text/data.js';
import { linesOf, readAsset, shippedText } from '../text/shipped.js';
import { corpusFiles, FACTS } from './corpus-files.js';
import { WHOAMI, WHOAMI_UNSEEN } from './corpus/index.js';
import { tokenizerFiles, VOCAB_SIZE } from './tokenizer-files.js';

const text = shippedText();
const read = (name: string) =>
  readData(linesOf(readAsset(name)), { path: name }, { text, vocabSize: VOCAB_SIZE, seqLen: 128 });

test('the files are what `npm run assets` makes', () => {
  const corpus = corpusFiles();
  const files = { ...corpus, ...tokenizerFiles(Object.values(corpus)) };
  for (const [name, made] of Object.entries(files)) assert.ok(made === readAsset(name), name);
});

test('config, tokenizer and generation config belong together', () => {
  const config = JSON.parse(readAsset('qwen3-tiny/config.json')) as Record<string, number>;
  parseQwen3Config(config, 'config.json');
  assert.is(config['vocab_size'], VOCAB_SIZE);
  assert.is(text.tokenizer.vocabSize, VOCAB_SIZE);
  assert.is(config['eos_token_id'], text.tokenizer.specialTokens.get('<|im_end|>'));
  const generation = JSON.parse(readAsset('qwen3-tiny/generation_config.json')) as { eos_token_id: number[] };
  assert.equal(
    generation.eos_token_id,
    ['<|im_end|>', '<|endoftext|>'].map((content) => text.tokenizer.specialTokens.get(content)),
  );
});

test('every data file reads whole: nothing cut, answers short', async () => {
  for (const name of ['corpus/facts', 'corpus/dialogues', 'corpus/heldout', 'whoami', 'keep']) {
    const { report } = await read(`${name}.jsonl`);
    assert.is(report.truncatedSamples, 0, name);
    assert.ok(report.longestTokens <= 96, `${name}: ${report.longestTokens}`);
  }
});

test('a question has one answer, and held-out questions are not trained on', () => {
  const answers = new Map<string, string>();
  for (const { answer, questions } of FACTS)
    for (const question of questions) {
      assert.is(answers.get(question) ?? answer, answer, question);
      answers.set(question, answer);
    }
  const questions = (name: string): string[] =>
    readAsset(name)
      .trim()
      .split('\n')
      .map((line) => (JSON.parse(line) as { prompt: string }).prompt);
  const trained = new Set([...questions('corpus/facts.jsonl'), ...questions('keep.jsonl')]);
  for (const dialogue of readAsset('corpus/dialogues.jsonl').trim().split('\n'))
    for (const { role, content } of (
      JSON.parse(dialogue) as { messages: { role: string; content: string }[] }
    ).messages)
      if (role === 'user') trained.add(content);
  for (const question of questions('corpus/heldout.jsonl')) assert.not.ok(trained.has(question), question);
});

test('the new identity has forty ways to ask in each language, and unseen ones for the gate', () => {
  for (const { language, questions } of WHOAMI) {
    assert.ok(questions.length >= 40);
    assert.is(new Set(questions).size, questions.length);
    for (const unseen of WHOAMI_UNSEEN[language]) assert.not.ok(questions.includes(unseen), unseen);
  }
});

test('what the pipelines expect is what the corpus says', () => {
  interface Pipeline {
    stages: {
      with?: { prompts?: string[]; expect?: { prompt: string; contains?: string; matches?: string }[] };
    }[];
  }
  const answersOf = new Map(
    FACTS.flatMap((fact) => fact.questions.map((question) => [question, fact.answer])),
  );
  const identity = new Map(
    WHOAMI.flatMap((fact) => fact.questions.map((question) => [question, fact.answer])),
  );
  const unseen = new Map<string, string>(
    WHOAMI.flatMap((fact) =>
      WHOAMI_UNSEEN[fact.language].map((question) => [question, fact.answer] as const),
    ),
  );
  const known = {
    'pretrain-tiny': answersOf,
    'train-full': new Map([...answersOf, ...identity, ...unseen]),
  };
  for (const [name, answers] of Object.entries(known)) {
    const file = new URL(`../../pipelines/${name}.yaml`, import.meta.url);
    const { stages } = parse(readFileSync(file, 'utf8'), { merge: true }) as Pipeline;
    const expectations = stages.flatMap((stage) => stage.with?.expect ?? []);
    assert.ok(expectations.length >= 8, name);
    for (const { prompt, contains, matches } of expectations) {
      const answer = answers.get(prompt);
      assert.ok(answer, `${name} asks what nobody taught: ${prompt}`);
      if (contains) assert.ok(answer!.includes(contains), prompt);
      if (matches) assert.match(answer!, new RegExp(matches, 'u'));
    }
  }
});

test.run();
