/** The shipped tokenizer and small ones made for a test. */
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { Q4Error, Q4Errors } from '../../runtime/errors.js';
import { BYTE_TO_CHAR } from '../../runtime/text/byte-level.js';
import { ChatTemplate } from '../../runtime/text/chat-template.js';
import type { ModelText } from '../../runtime/text/model-text.js';
import { philox } from '../../runtime/text/philox.js';
import { Tokenizer, type TokenizerOptions } from '../../runtime/text/tokenizer.js';

export const assetPath = (name: string): string =>
  fileURLToPath(new URL(`../../pipelines/assets/${name}`, import.meta.url));
export const readAsset = (name: string): string => readFileSync(assetPath(name), 'utf8');

export const TOKENIZER_JSON = readAsset('qwen3-tiny/tokenizer.json');
export const TOKENIZER_CONFIG = readAsset('qwen3-tiny/tokenizer_config.json');

export const shippedTokenizer = (options: TokenizerOptions = {}): Tokenizer =>
  new Tokenizer(TOKENIZER_JSON, TOKENIZER_CONFIG, options);

export function shippedText(template?: string): ModelText {
  const tokenizer = shippedTokenizer();
  return {
    tokenizer,
    template: new ChatTemplate(template ?? tokenizer.chatTemplate!, tokenizer),
    files: new Map(),
  };
}

/** A tokenizer.json of the 256 bytes and a few tokens, to be broken by tests. */
export const smallTokenizerJson = () => ({
  version: '1.0',
  added_tokens: [{ id: 258, content: '<|im_end|>', special: true }] as unknown,
  normalizer: { type: 'NFC' } as unknown,
  pre_tokenizer: { type: 'ByteLevel', add_prefix_space: false, use_regex: true } as unknown,
  post_processor: null as unknown,
  decoder: { type: 'ByteLevel' } as unknown,
  model: {
    type: 'BPE',
    vocab: { ...Object.fromEntries(BYTE_TO_CHAR.map((char, i) => [char, i])), ab: 256, abc: 257 },
    merges: ['a b', 'ab c'],
  } as unknown,
});

/** What was thrown, which must be a Q4Error (or the first of several). */
export function caught(run: () => unknown): Q4Error {
  try {
    run();
  } catch (error) {
    if (error instanceof Q4Error) return error;
    throw error;
  }
  throw new Error('nothing was thrown');
}

export async function caughtAll(promise: Promise<unknown>): Promise<readonly Q4Error[]> {
  try {
    await promise;
  } catch (error) {
    if (error instanceof Q4Errors) return error.errors;
    if (error instanceof Q4Error) return [error];
    throw error;
  }
  throw new Error('nothing was thrown');
}

export async function* linesOf(text: string): AsyncIterable<string> {
  const lines = text.split('\n');
  if (lines[lines.length - 1] === '') lines.pop();
  yield* lines;
}

/** Whole numbers below `limit`, the same in every run. */
export function draws(seed: number): (limit: number) => number {
  let counter = 0;
  return (limit) => philox([seed, 77], [counter++, 0, 0, 0])[0] % limit;
}
