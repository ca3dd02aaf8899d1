/**
 * Reads and checks tokenizer.json and tokenizer_config.json. What these files ask for and q4run does not do is refused
 * by name: a tokenizer that is nearly right gives a model that is quietly wrong.
 */
import { Q4Error, type ErrorCode, type ErrorDetails } from '../errors.js';
import { BYTE_TO_CHAR } from './byte-level.js';
import { findJsonMistake } from './json-position.js';

export interface AddedToken {
  readonly id: number;
  readonly content: string;
  /** Special tokens are never made from text; markers (`<think>`) are, where an assistant writes them. */
  readonly special: boolean;
}

export interface TokenizerFile {
  /** As parsed, with absent optional parts filled in, for the tokenizer library. */
  readonly json: Record<string, unknown>;
  readonly vocab: Readonly<Record<string, number>>;
  readonly added: readonly AddedToken[];
  /** One more than the largest id. */
  readonly vocabSize: number;
}

export interface TokenizerConfig {
  readonly json: Record<string, unknown>;
  readonly bosToken: string | null;
  readonly eosToken: string | null;
  readonly padToken: string | null;
  /** The default chat template, if the file holds one. */
  readonly chatTemplate: string | null;
}

/** Larger vocabularies than any model has; bounds what a hostile file can make us allocate. */
const MOST_TOKENS = 1 << 20;
const LONGEST_ADDED_TOKEN = 512;

type Json = Record<string, unknown>;
const isObject = (value: unknown): value is Json =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

const show = (value: unknown): string => {
  const text = value === undefined ? 'nothing' : (JSON.stringify(value) ?? String(value));
  return text.length > 60 ? `${text.slice(0, 57)}...` : text;
};

export function parseJson(text: string, file: string, code: ErrorCode = 'Q4260'): unknown {
  try {
    return JSON.parse(text) as unknown;
  } catch (cause) {
    const mistake = findJsonMistake(text);
    const details: ErrorDetails = { file, cause };
    if (mistake) {
      const { line, col, expected, found } = mistake;
      throw new Q4Error(code, `not valid JSON: expected ${expected}, found ${found}`, {
        ...details,
        line,
        col,
        expected,
        found,
      });
    }
    throw new Q4Error(code, `not valid JSON: ${(cause as Error).message}`, details);
  }
}

/** @param modelVocabSize rows of the model's embedding; every id must be below it */
export function readTokenizerFile(text: string, file: string, modelVocabSize?: number): TokenizerFile {
  const parsed = parseJson(text, file);
  const wrong = (message: string, found: unknown, expected: string): Q4Error =>
    new Q4Error('Q4261', message, { file, expected, found: show(found) });
  if (!isObject(parsed)) throw wrong('a tokenizer.json is an object', parsed, 'an object with the key model');
  const model = parsed['model'];
  if (!isObject(model)) throw wrong("no 'model' in it", model, 'model: { type: BPE, vocab, merges }');
  const vocab = model['vocab'];
  if (!isObject(vocab)) {
    if (model['type'] !== 'BPE') refuseFeatures(parsed, model, file);
    throw wrong("no 'model.vocab' in it", vocab, 'an object of token: id');
  }
  if (!Array.isArray(model['merges'])) throw wrong("no 'model.merges' in it", model['merges'], 'a list');
  refuseFeatures(parsed, model, file);

  const limit = Math.min(modelVocabSize ?? MOST_TOKENS, MOST_TOKENS);
  const owner = new Map<number, string>();
  const claim = (token: string, id: unknown, where: string): number => {
    if (typeof id !== 'number' || !Number.isInteger(id) || id < 0)
      throw wrong(`${where}: the id of ${show(token)} is not a whole number`, id, 'an integer from 0');
    if (id >= limit)
      throw new Q4Error('Q4263', `${where}: id ${id} of ${show(token)} is outside the model's vocabulary`, {
        file,
        expected: `ids below ${limit}`,
        found: String(id),
        hint: 'Take the tokenizer that belongs to this model.',
      });
    const other = owner.get(id);
    if (other !== undefined && other !== token)
      throw wrong(`${where}: ${show(token)} and ${show(other)} have the same id`, id, 'one token an id');
    owner.set(id, token);
    return id;
  };
  const entries = Object.entries(vocab);
  if (entries.length > limit)
    throw new Q4Error('Q4263', `the vocabulary has ${entries.length} entries`, {
      file,
      expected: `at most ${limit}`,
      found: String(entries.length),
    });
  for (const [token, id] of entries) claim(token, id, 'model.vocab');
  checkBytes(vocab, file);
  checkMerges(model['merges'] as unknown[], vocab, file);
  const added = readAdded(parsed['added_tokens'] ?? [], vocab, claim, file);
  refuseSpecialsFromText(added, model['merges'] as unknown[], file);
  let vocabSize = 0;
  for (const id of owner.keys()) vocabSize = Math.max(vocabSize, id + 1);
  const json = { normalizer: null, pre_tokenizer: null, post_processor: null, decoder: null, ...parsed };
  return {
    json: { ...json, added_tokens: parsed['added_tokens'] ?? [] },
    vocab: vocab as Record<string, number>,
    added,
    vocabSize,
  };
}

function refuseFeatures(json: Json, model: Json, file: string): void {
  const refuse = (what: string, expected: string): never => {
    throw new Q4Error('Q4262', `${what} is not supported`, {
      file,
      expected,
      found: what,
      hint: 'q4run reads the byte-level BPE tokenizers of the Qwen2 and Qwen3 family.',
    });
  };
  const typeOf = (value: unknown): unknown => (isObject(value) ? value['type'] : null);
  if (model['type'] !== undefined && model['type'] !== 'BPE')
    refuse(`model.type ${show(model['type'])}`, 'model.type BPE');
  for (const key of ['continuing_subword_prefix', 'end_of_word_suffix', 'dropout', 'unk_token'])
    if (model[key]) refuse(`model.${key} ${show(model[key])}`, `model.${key} null or empty`);
  if (model['byte_fallback'] === true) refuse('model.byte_fallback', 'model.byte_fallback false');
  if (typeOf(json['decoder']) !== 'ByteLevel')
    refuse(`decoder ${show(typeOf(json['decoder']))}`, 'decoder: { type: ByteLevel }');
  const pre = json['pre_tokenizer'];
  const parts = isObject(pre) && Array.isArray(pre['pretokenizers']) ? pre['pretokenizers'] : [pre];
  const last: unknown = parts[parts.length - 1];
  if (!isObject(last) || last['type'] !== 'ByteLevel')
    refuse(`pre_tokenizer ${show(typeOf(pre))}`, 'a pre_tokenizer that ends with ByteLevel');
  else if (last['add_prefix_space'] === true) refuse('add_prefix_space', 'add_prefix_space: false');
}

function checkBytes(vocab: Json, file: string): void {
  const missing = BYTE_TO_CHAR.findIndex((char) => !Object.hasOwn(vocab, char));
  if (missing < 0) return;
  const name = `0x${missing.toString(16).padStart(2, '0')}`;
  throw new Q4Error('Q4261', `the vocabulary lacks byte ${name}, so some text could not be written`, {
    file,
    expected: 'all 256 bytes as tokens',
    found: `no ${JSON.stringify(BYTE_TO_CHAR[missing])}`,
  });
}

function checkMerges(merges: readonly unknown[], vocab: Json, file: string): void {
  merges.forEach((merge, i) => {
    const pair: unknown = typeof merge === 'string' ? merge.split(' ') : merge;
    const good =
      Array.isArray(pair) &&
      pair.length === 2 &&
      pair.every((part) => typeof part === 'string' && Object.hasOwn(vocab, part)) &&
      Object.hasOwn(vocab, pair.join(''));
    if (!good)
      throw new Q4Error('Q4261', `model.merges[${i}] does not join two tokens of the vocabulary to a third`, {
        file,
        expected: 'two tokens whose joint is a token too',
        found: show(merge),
      });
  });
}

function readAdded(
  value: unknown,
  vocab: Json,
  claim: (token: string, id: unknown, where: string) => number,
  file: string,
): AddedToken[] {
  const wrong = (message: string, found: unknown): Q4Error =>
    new Q4Error('Q4261', message, { file, expected: '{ id, content, special }', found: show(found) });
  if (!Array.isArray(value)) throw wrong("'added_tokens' is not a list", value);
  const seen = new Set<string>();
  return value.map((token: unknown, i) => {
    const where = `added_tokens[${i}]`;
    if (!isObject(token)) throw wrong(`${where} is not an object`, token);
    const { content, special } = token;
    if (typeof content !== 'string' || content === '') throw wrong(`${where} has no content`, content);
    if (content.length > LONGEST_ADDED_TOKEN)
      throw new Q4Error('Q4261', `${where} has ${content.length} characters`, {
        file,
        expected: `at most ${LONGEST_ADDED_TOKEN} characters`,
        found: show(content),
      });
    if (content.length < 2 && special === true)
      throw new Q4Error('Q4262', `${where}: a special token of one character is not supported`, {
        file,
        expected: 'at least two characters, so that text can be told from it',
        found: show(content),
      });
    if (seen.has(content)) throw wrong(`${where} repeats ${show(content)}`, token);
    seen.add(content);
    for (const flag of ['single_word', 'lstrip', 'rstrip'])
      if (token[flag] === true)
        throw new Q4Error('Q4262', `${where}: ${flag} is not supported`, { file, found: show(content) });
    const id = claim(content, token['id'], where);
    if (Object.hasOwn(vocab, content) && vocab[content] !== id)
      throw wrong(`${where} has another id than in the vocabulary (${show(vocab[content])})`, token);
    return { id, content, special: special === true };
  });
}

/** Merging plain text must never end at a special token: that would let a user's text write one. */
function refuseSpecialsFromText(
  added: readonly AddedToken[],
  merges: readonly unknown[],
  file: string,
): void {
  const products = new Set<string>(BYTE_TO_CHAR);
  for (const merge of merges)
    products.add(typeof merge === 'string' ? merge.replace(' ', '') : (merge as string[]).join(''));
  const found = added.find((token) => token.special && products.has(token.content));
  if (found)
    throw new Q4Error('Q4261', `plain text could become the special token ${show(found.content)}`, {
      file,
      expected: 'special tokens that no merge produces',
      found: show(found.content),
    });
}

export function readTokenizerConfig(text: string, file: string): TokenizerConfig {
  const json = parseJson(text, file);
  if (!isObject(json))
    throw new Q4Error('Q4261', 'a tokenizer_config.json is an object', {
      file,
      expected: 'an object',
      found: show(json),
    });
  /** A token stands there as text, or as an object with its content. */
  const token = (key: string): string | null => {
    const value = isObject(json[key]) ? json[key]['content'] : json[key];
    if (value === undefined || value === null) return null;
    if (typeof value === 'string') return value;
    throw new Q4Error('Q4261', `'${key}' is not a token`, { file, expected: 'text', found: show(value) });
  };
  return {
    json: { ...json, clean_up_tokenization_spaces: false },
    bosToken: token('bos_token'),
    eosToken: token('eos_token'),
    padToken: token('pad_token'),
    chatTemplate: readTemplate(json['chat_template'], file),
  };
}

function readTemplate(value: unknown, file: string): string | null {
  if (value === undefined || value === null) return null;
  if (typeof value === 'string') return value;
  const entries: unknown[] = Array.isArray(value) ? value : [];
  const found = entries.find((e) => isObject(e) && e['name'] === 'default');
  if (isObject(found) && typeof found['template'] === 'string') return found['template'];
  throw new Q4Error('Q4261', "'chat_template' is neither text nor a list with a default", {
    file,
    expected: 'text, or [{ name: default, template }]',
    found: show(value),
  });
}
