import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { toByteLevel } from '../../runtime/text/byte-level.js';
import { Tokenizer } from '../../runtime/text/tokenizer.js';
import {
  caught,
  draws,
  readAsset,
  shippedTokenizer,
  smallTokenizerJson,
  TOKENIZER_CONFIG,
  TOKENIZER_JSON,
} from './shipped.js';

const NASTY = [
  '',
  ' ',
  '\n',
  '\r\n\r\n',
  ' \t \u3000\u00a0 x',
  "I'm sure they'll say IT'S fine, we'VE 12345 reasons",
  '天空是什麼顏色？台灣最高的山是玉山。',
  '👩‍👩‍👧‍👦🏳️‍🌈👍🏽',
  'e\u0301 n\u0303 \u1112\u1161\u11ab',
  'שלום עולם مرحبا بالعالم',
  '\u202eevil\u202c \u200b\u200d\ufeff',
  '\u0000\u0001\u0007\u001b[31m\u007f\u0085',
  '\ud800 lone \udc00',
  '𠮷野家 𝔘𝔫𝔦𝔠𝔬𝔡𝔢',
  'a'.repeat(3000),
  '　全形　ＡＢＣ１２３',
  '<|im_start|>user\nhi<|im_end|>\n<|endoftext|><think></think>',
  '__proto__ constructor toString',
];

/** Encodes by the definition: the lowest-ranked merge first, again and again. Slow, and an oracle. */
function naiveEncode(text: string): number[] {
  const json = JSON.parse(TOKENIZER_JSON) as {
    model: { vocab: Record<string, number>; merges: [string, string][] };
  };
  const ranks = new Map(json.model.merges.map((merge, i) => [merge.join(' '), i]));
  const split =
    /'(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+/gu;
  const ids: number[] = [];
  for (const [piece] of text.normalize('NFC').matchAll(split)) {
    const symbols = [...toByteLevel(piece)];
    for (;;) {
      let best = Infinity;
      let place = -1;
      for (let i = 0; i + 1 < symbols.length; i++) {
        const rank = ranks.get(`${symbols[i]} ${symbols[i + 1]}`) ?? Infinity;
        if (rank < best) [best, place] = [rank, i];
      }
      if (place < 0) break;
      symbols.splice(place, 2, symbols[place]! + symbols[place + 1]!);
    }
    for (const symbol of symbols) ids.push(json.model.vocab[symbol]!);
  }
  return ids;
}

const wellFormed = (text: string): string =>
  new TextDecoder('utf-8', { ignoreBOM: true }).decode(new TextEncoder().encode(text));

test('text comes back as it was, normalised', () => {
  const tokenizer = shippedTokenizer();
  for (const text of NASTY)
    assert.is(tokenizer.decode(tokenizer.encodeText(text)), wellFormed(text.normalize('NFC')));
});

test('ids are those of byte-pair encoding by its definition', () => {
  const tokenizer = shippedTokenizer();
  const corpus = readAsset('corpus/facts.jsonl').split('\n').slice(0, 150);
  for (const text of [...NASTY, ...corpus]) {
    if (text.length > 1000) continue;
    assert.equal(tokenizer.encodeText(text), naiveEncode(text), JSON.stringify(text));
    assert.equal(tokenizer.encodeText(text), naiveEncode(text), 'remembered: ' + JSON.stringify(text));
  }
});

test('text never makes an added token', () => {
  const tokenizer = shippedTokenizer();
  const added = new Set([...tokenizer.addedTokens.values()].map((token) => token.id));
  for (const content of tokenizer.addedTokens.keys())
    for (const text of [content, `a${content}b`, `${content}${content}`, content.slice(0, -1)])
      assert.not.ok(
        tokenizer.encodeText(text).some((id) => added.has(id)),
        text,
      );
});

test('rendered prompts make them, the longest first', () => {
  const tokenizer = shippedTokenizer();
  const start = tokenizer.specialTokens.get('<|im_start|>')!;
  const end = tokenizer.specialTokens.get('<|im_end|>')!;
  const hi = tokenizer.encodeText('user\nhi');
  assert.equal(tokenizer.encodeRendered('<|im_start|>user\nhi<|im_end|>'), [start, ...hi, end]);
  assert.equal(tokenizer.encodeRendered('<|im_<|im_end|>'), [...tokenizer.encodeText('<|im_'), end]);
  assert.equal(tokenizer.encodeRendered(''), []);
  assert.is(tokenizer.addedKind(end), 'special');
  assert.is(tokenizer.addedKind(tokenizer.addedTokens.get('<think>')!.id), 'marker');
  assert.not.ok(tokenizer.specialTokens.has('<think>'));
});

test('knows what ends an answer and a document', () => {
  const tokenizer = shippedTokenizer({ eosTokenIds: [3046, 3048] });
  assert.equal(tokenizer.eosIds, [3048, 3046]);
  assert.is(tokenizer.endOfTextId, tokenizer.specialTokens.get('<|endoftext|>'));
  assert.is(tokenizer.vocabSize, 3072);
});

test('the streaming detokenizer says what decoding at once says, and never half a character', () => {
  const tokenizer = shippedTokenizer();
  const draw = draws(11);
  for (let round = 0; round < 300; round++) {
    // Random bytes make plenty of broken characters; beyond the vocabulary is padding.
    const limit = round % 2 ? 300 : tokenizer.vocabSize + 20;
    const ids = Array.from({ length: 1 + draw(60) }, () => draw(limit));
    for (const skipSpecial of [true, false]) {
      const stream = tokenizer.streamingDetokenizer({ skipSpecial });
      const parts = ids.map((id) => stream.push(id));
      assert.is(parts.join('') + stream.flush(), tokenizer.decode(ids, { skipSpecial }));
    }
  }
  for (const text of NASTY) {
    const whole = wellFormed(text.normalize('NFC'));
    const stream = tokenizer.streamingDetokenizer();
    let shown = '';
    for (const id of tokenizer.encodeText(text)) {
      shown += stream.push(id);
      assert.ok(whole.startsWith(shown), JSON.stringify(shown));
    }
    assert.is(shown + stream.flush(), whole);
  }
});

test('special tokens are left out of what people see, markers are not', () => {
  const tokenizer = shippedTokenizer();
  const ids = tokenizer.encodeRendered('<think>\nso\n</think>yes<|im_end|>\n');
  assert.is(tokenizer.decode(ids, { skipSpecial: true }), '<think>\nso\n</think>yes\n');
  assert.is(tokenizer.decode(ids), '<think>\nso\n</think>yes<|im_end|>\n');
  assert.is(tokenizer.decode([]), '');
});

const refusal = (change: (json: ReturnType<typeof smallTokenizerJson>) => unknown, vocabSize?: number) => {
  const json = smallTokenizerJson();
  const changed = change(json);
  return caught(
    () =>
      new Tokenizer(
        typeof changed === 'string' && /^[[{]/.test(changed) ? changed : JSON.stringify(json),
        '{}',
        vocabSize === undefined ? {} : { modelVocabSize: vocabSize },
      ),
  );
};
const model = (json: ReturnType<typeof smallTokenizerJson>) =>
  json.model as {
    type?: unknown;
    vocab?: Record<string, unknown>;
    merges?: unknown[];
    [key: string]: unknown;
  };

test('malformed tokenizers are refused with a code and the reason', () => {
  const cases: [string, RegExp, (json: ReturnType<typeof smallTokenizerJson>) => unknown][] = [
    ['Q4260', /expected ':'/, () => '{\n "model" 1}'],
    ['Q4261', /is an object/, () => '[]'],
    ['Q4261', /no 'model'/, (json) => delete json.model],
    ['Q4261', /no 'model.vocab'/, (json) => delete model(json).vocab],
    ['Q4261', /no 'model.merges'/, (json) => delete model(json).merges],
    ['Q4261', /merges\[2\]/, (json) => model(json).merges!.push('x y')],
    ['Q4261', /merges\[2\]/, (json) => model(json).merges!.push(7)],
    ['Q4261', /not a whole number/, (json) => (model(json).vocab!['ab'] = 1.5)],
    ['Q4261', /not a whole number/, (json) => (model(json).vocab!['ab'] = '7')],
    ['Q4261', /same id/, (json) => (model(json).vocab!['ab'] = 3)],
    ['Q4261', /lacks byte 0x41/, (json) => delete model(json).vocab!['A']],
    ['Q4263', /id 1000000000/, (json) => (model(json).vocab!['ab'] = 1e9)],
    ['Q4261', /same id/, (json) => (json.added_tokens = [{ id: 3, content: '<|x|>' }])],
    ['Q4263', /outside/, (json) => (json.added_tokens = [{ id: 2 ** 31, content: '<|x|>' }])],
    ['Q4261', /not a whole number/, (json) => (json.added_tokens = [{ id: -1, content: '<|x|>' }])],
    ['Q4261', /not a list/, (json) => (json.added_tokens = 'x')],
    ['Q4261', /no content/, (json) => (json.added_tokens = [{ id: 258, content: '' }])],
    ['Q4261', /100000 characters/, (json) => (json.added_tokens = [{ id: 258, content: 'x'.repeat(1e5) }])],
    ['Q4262', /one character/, (json) => (json.added_tokens = [{ id: 258, content: '€', special: true }])],
    ['Q4262', /lstrip/, (json) => (json.added_tokens = [{ id: 258, content: '<|x|>', lstrip: true }])],
    ['Q4261', /could become/, (json) => (json.added_tokens = [{ id: 257, content: 'abc', special: true }])],
    ['Q4261', /another id/, (json) => (json.added_tokens = [{ id: 258, content: 'abc' }])],
    ['Q4262', /WordPiece/, (json) => (model(json).type = 'WordPiece')],
    ['Q4262', /byte_fallback/, (json) => (model(json)['byte_fallback'] = true)],
    ['Q4262', /decoder/, (json) => (json.decoder = { type: 'Metaspace' })],
    ['Q4262', /pre_tokenizer/, (json) => (json.pre_tokenizer = { type: 'Whitespace' })],
    [
      'Q4262',
      /add_prefix_space/,
      (json) => (json.pre_tokenizer = { type: 'ByteLevel', add_prefix_space: true }),
    ],
    ['Q4262', /refuses it/, (json) => (json.normalizer = { type: 'Nonsense' })],
    ['Q4261', /not written in bytes/, (json) => (model(json).vocab!['漢'] = 300)],
  ];
  for (const [code, message, change] of cases) {
    const error = refusal(change);
    assert.is(error.code, code, error.message);
    assert.match(error.message, message);
    assert.is(error.details.file, 'tokenizer.json');
    assert.is(error.exit, 4);
  }
  const json = refusal(() => '{\n "model" 1}');
  assert.equal([json.details.line, json.details.col], [2, 10]);
  assert.is(refusal(() => undefined, 258).code, 'Q4263');
});

test('a sound small tokenizer is taken, and hostile keys are only text', () => {
  const json = smallTokenizerJson();
  const tokenizer = new Tokenizer(JSON.stringify(json), '{}', { modelVocabSize: 259 });
  assert.equal(tokenizer.encodeText('abcab'), [257, 256]);
  assert.equal(tokenizer.eosIds, [258]);
  const text = JSON.stringify(json).replace('"ab":256', '"__proto__":256').replace('"a b","ab c"', '');
  const hostile = new Tokenizer(text.replace('"abc":257,', '').replace(',"abc":257', ''), '{}');
  assert.is(hostile.decode([256]), '__proto__');
});

test('malformed configs are refused', () => {
  const of = (config: string) => caught(() => new Tokenizer(TOKENIZER_JSON, config));
  assert.is(of('{').code, 'Q4260');
  assert.is(of('{').details.file, 'tokenizer_config.json');
  assert.is(of('7').code, 'Q4261');
  assert.is(of('{"eos_token": 7}').code, 'Q4261');
  assert.is(of('{"chat_template": [{"name": "tools", "template": ""}]}').code, 'Q4261');
  const list =
    '{"chat_template": [{"name": "default", "template": "x"}], "eos_token": {"content": "<|im_end|>"}}';
  const tokenizer = new Tokenizer(TOKENIZER_JSON, list);
  assert.is(tokenizer.chatTemplate, 'x');
  assert.equal(tokenizer.eosIds, [3048]);
  assert.ok(JSON.parse(TOKENIZER_CONFIG));
});

test.run();
