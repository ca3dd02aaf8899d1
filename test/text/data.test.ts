import { test } from 'uvu';
import * as assert from 'uvu/assert';
import type { Q4Error } from '../../runtime/errors.js';
import { readData, type DataSource, type DataSet, type ReadOptions } from '../../runtime/text/data.js';
import { caughtAll, linesOf, shippedText } from './shipped.js';

const text = shippedText();
const { tokenizer } = text;
const OPTIONS: ReadOptions = { text, vocabSize: 3072, seqLen: 128 };

const read = (
  content: string,
  source: Partial<DataSource> = {},
  options: Partial<ReadOptions> = {},
): Promise<DataSet> => readData(linesOf(content), { path: 'd.jsonl', ...source }, { ...OPTIONS, ...options });
const errorsOf = (
  content: string,
  source: Partial<DataSource> = {},
  options: Partial<ReadOptions> = {},
): Promise<readonly Q4Error[]> => caughtAll(read(content, source, options));

/** The text of a sample with what counts in brackets, each counted token on its own. */
const shown = (set: DataSet, i = 0): string => {
  const { ids, labels } = set.samples[i]!;
  return [...ids]
    .map((id, k) => (labels[k] === -100 ? tokenizer.tokenText(id) : `[${tokenizer.tokenText(id)}]`))
    .join('');
};

test('chats count the answers and the end of the turn', async () => {
  const line = {
    messages: [
      { role: 'user', content: 'Hi' },
      { role: 'assistant', content: 'Hello!' },
    ],
  };
  const expected = '<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n[Hello][!][<|im_end|>]\n';
  const set = await read(JSON.stringify(line) + '\n');
  assert.is(shown(set), expected);
  assert.is(shown(await read('{"prompt": "Hi", "completion": "Hello!"}')), expected);
  assert.is(shown(await read('Hi\tHello!', { path: 'd.tsv' })), expected);
  assert.is(shown(await read('Hi\tHello!', { path: 'd.txt', format: 'tsv' })), expected);
  assert.equal(set.report, {
    path: 'd.jsonl',
    format: 'messages',
    samples: 1,
    tokens: 13,
    trainedTokens: 3,
    truncatedSamples: 0,
    truncatedTokens: 0,
    longestTokens: 13,
  });
});

test('a system message is put before chats that have none', async () => {
  const lines = [
    {
      messages: [
        { role: 'user', content: 'a' },
        { role: 'assistant', content: 'b' },
      ],
    },
    {
      messages: [
        { role: 'system', content: 'own' },
        { role: 'user', content: 'a' },
        { role: 'assistant', content: 'b' },
      ],
    },
  ];
  const set = await read(lines.map((line) => JSON.stringify(line)).join('\n'), {}, { system: 'ours' });
  assert.ok(shown(set, 0).startsWith('<|im_start|>system\nours<|im_end|>'));
  assert.ok(shown(set, 1).startsWith('<|im_start|>system\nown<|im_end|>'));
});

test('all tokens count where the pipeline says so', async () => {
  const set = await read('{"prompt": "Hi", "completion": "Hello!"}', {}, { trainOn: 'all' });
  assert.equal(set.samples[0]!.labels, set.samples[0]!.ids);
  assert.is(set.report.trainedTokens, set.report.tokens - 1);
});

test('plain text ends with the end of text, and holds no special token', async () => {
  const set = await read('{"text": "a <|im_end|> b"}');
  assert.is(shown(set).replace(/[[\]]/g, ''), 'a <|im_end|> b<|endoftext|>');
  const { ids } = set.samples[0]!;
  assert.is([...ids].filter((id) => tokenizer.addedKind(id) !== null).length, 1);
});

test('token ids are taken as they stand, labels at their places', async () => {
  const set = await read(
    '{"input_ids": [5, 6, 7], "labels": [-100, 9, 7]}\n{"input_ids": [1, 2]}',
    {},
    { text: null },
  );
  assert.equal([...set.samples[0]!.labels], [-100, 9, 7]);
  assert.equal([...set.samples[1]!.labels], [1, 2]);
  assert.is(set.report.trainedTokens, 3);
});

test('blank lines and a byte order mark do not matter, line numbers stay', async () => {
  const set = await read('\uFEFF\n\n{"text": "a b"}\n   \n{"text": "c d"}\n');
  assert.equal(
    set.samples.map((sample) => sample.line),
    [3, 5],
  );
  assert.is((await read('\uFEFF{"text": "a b"}')).samples.length, 1);
});

test('long samples are cut and counted', async () => {
  const content =
    '{"input_ids": [1,2,3,4,5,6,7,8,9,10]}\n{"input_ids": [1,2,3]}\n{"input_ids": [1,2,3,4,5,6]}';
  const { samples, report } = await read(content, {}, { seqLen: 4 });
  assert.equal(
    samples.map((sample) => sample.ids.length),
    [4, 3, 4],
  );
  assert.equal([report.truncatedSamples, report.truncatedTokens, report.tokens], [2, 8, 11]);
});

test('only the first samples are read where the pipeline says so', async () => {
  const set = await read('{"text": "a b"}\n{"text": "c d"}\nnot JSON', { maxSamples: 2 });
  assert.is(set.samples.length, 2);
});

test('every bad line has its code, place and what was expected', async () => {
  const good = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}';
  const cases: [string, string, RegExp, Partial<DataSource>?, Partial<ReadOptions>?][] = [
    ['{"messages": [}', 'Q4310', /expected a value or '\]'/],
    ['{"messages": [', 'Q4310', /the end of the text/],
    ['[1, 2]', 'Q4311', /is an object/],
    ['{"messages": []}', 'Q4311', /not a list of messages/],
    ['{"messages": "hi"}', 'Q4311', /not a list of messages/],
    ['{"messages": [7]}', 'Q4311', /messages\[0\] is not a message/],
    ['{"messages": [{"role": "king", "content": "x"}]}', 'Q4311', /messages\[0\]\.role/],
    ['{"messages": [{"role": "user"}]}', 'Q4311', /messages\[0\]\.content/],
    ['{"messages": [{"role": "user", "content": null}]}', 'Q4311', /messages\[0\]\.content/],
    ['{"messages": [{"role": "user", "content": "a"}], "tools": 7}', 'Q4311', /'tools'/],
    ['{"messages": [{"role": "user", "content": "a"}]}', 'Q4313', /no token of this sample/],
    ['{"text": "b"}', 'Q4312', /format 'text' in a file of format 'messages'/],
    ['{"prompt": "b", "completion": "c"}', 'Q4312', /format 'prompt'/],
  ];
  for (const [line, code, message] of cases) {
    const errors = await errorsOf(`${good}\n\n${line}\n${good}`);
    assert.is(errors.length, 1, line);
    const [error] = errors as [Q4Error];
    assert.is(error.code, code, `${line}: ${error.message}`);
    assert.match(error.message, message);
    assert.equal([error.details.file, error.details.line], ['d.jsonl', 3]);
    assert.ok(error.details.expected, line);
    assert.ok(error.details.found, line);
    assert.ok([4, 5].includes(error.exit));
  }
  assert.is((await errorsOf(`${good}\n{"messages": [}`))[0]!.details.col, 15);
});

test('each format has its own refusals', async () => {
  const one = async (
    content: string,
    source?: Partial<DataSource>,
    options?: Partial<ReadOptions>,
  ): Promise<Q4Error> => {
    const errors = await errorsOf(content, source, options);
    assert.is(errors.length, 1);
    return errors[0]!;
  };
  assert.is((await one('{"prompt": "a"}')).details.entry, 'completion');
  assert.is((await one('{"completion": "a"}')).details.entry, 'prompt');
  assert.is((await one('{"prompt": 1, "completion": "b"}')).code, 'Q4311');
  assert.is((await one('{"text": null}')).code, 'Q4311');
  assert.is((await one('{"input_ids": []}')).code, 'Q4311');
  assert.is((await one('{"input_ids": [1, 2], "labels": [1]}')).details.entry, 'labels');
  for (const bad of ['3072', '-1', '1.5', '"7"', 'null']) {
    const error = await one(`{"input_ids": [1, ${bad}]}`);
    assert.is(error.code, 'Q4314', bad);
    assert.is(error.details.entry, 'input_ids[1]');
    assert.match(error.details.expected!, /from 0 to 3071/);
  }
  assert.is((await one('{"input_ids": [1, 2], "labels": [1, 3072]}')).details.entry, 'labels[1]');
  assert.is((await one('{"input_ids": [1, 2], "labels": [1, -100]}')).code, 'Q4313');
  assert.is((await one('{"input_ids": [1]}')).code, 'Q4313');
  const cutAway = await one(
    '{"input_ids": [1, 2, 3, 4], "labels": [-100, -100, -100, 4]}',
    {},
    { seqLen: 3 },
  );
  assert.is(cutAway.code, 'Q4313');
  assert.match(cutAway.details.hint!, /seq_len above 3/);
  assert.is((await one('a b c', { path: 'd.tsv' })).code, 'Q4311');
  assert.match((await one('a\tb\tc', { path: 'd.tsv' })).message, /this one has 2/);
  assert.is((await one('{"conversations": []}')).code, 'Q4316');
  assert.is((await one('{}')).code, 'Q4316');
  assert.is((await one('{"conversations": []}', { format: 'messages' })).code, 'Q4311');
  assert.is((await one('{"text": "x y"}', { format: 'messages' })).code, 'Q4312');
  assert.is((await one('')).code, 'Q4315');
  assert.is((await one('\n \n')).code, 'Q4315');
  assert.is((await one('{"text": "a b"}', {}, { text: null })).code, 'Q4317');
  assert.is(
    (await one('{"prompt": "a", "completion": "b"}', {}, { text: { ...text, template: null } })).code,
    'Q4301',
  );
});

test('all bad lines are told, up to twenty', async () => {
  const bad = Array.from({ length: 30 }, (_, i) => (i % 2 ? '{"text": "a b"}' : '{"text": 7}')).join('\n');
  assert.equal(
    (await errorsOf(bad)).map((error) => error.details.line),
    Array.from({ length: 15 }, (_, i) => 2 * i + 1),
  );
  assert.is((await errorsOf(Array.from({ length: 50 }, () => '{"text": 7}').join('\n'))).length, 20);
});

test('what a template says stands beside the line that it said it of', async () => {
  const strict = shippedText(
    "{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}",
  );
  const line = '{"messages": [{"role": "assistant", "content": "a"}]}';
  const [error] = await errorsOf(`\n${line}`, {}, { text: strict });
  assert.is(error!.code, 'Q4303');
  assert.match(error!.message, /user first/);
  assert.equal([error!.details.file, error!.details.line], ['d.jsonl', 2]);
});

test.run();
