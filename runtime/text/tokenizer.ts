/**
 * Text ↔ token ids, as the model's tokenizer.json says. The only file that knows @huggingface/tokenizers.
 * Pure: takes the texts of the files, gives ids.
 */
import * as library from '@huggingface/tokenizers';
import { Q4Error } from '../errors.js';
import { breakAdded, matcherOf, type AddedMatcher } from './added-tokens.js';
import { fromByteLevel } from './byte-level.js';
import { StreamingDetokenizer, type DetokenizerOptions, type TokenOutput } from './detokenizer.js';
import {
  readTokenizerConfig,
  readTokenizerFile,
  type AddedToken,
  type TokenizerFile,
} from './tokenizer-file.js';

/** What is used of the library, whose own types do not resolve under NodeNext. */
interface Pipeline {
  readonly normalizer: ((text: string) => string) | null;
  readonly pre_tokenizer: PreTokenizer;
  readonly model: ((pieces: string[]) => string[]) & { readonly tokens_to_ids: Map<string, number> };
}
type PreTokenizer = ((text: string | string[]) => string[]) & { readonly tokenizers?: PreTokenizer[] };
const { Tokenizer: Library } = library as unknown as {
  Tokenizer: new (tokenizer: object, config: object) => Pipeline;
};

export interface TokenizerOptions {
  /** For messages. */
  readonly tokenizerFile?: string;
  readonly configFile?: string;
  /** Rows of the model's embedding: a larger vocabulary is refused. */
  readonly modelVocabSize?: number;
  /** Further ids that end an answer, from config.json or generation_config.json. */
  readonly eosTokenIds?: readonly number[];
}

/** Pre-tokens that the memo keeps; it is emptied when full. Text is made of few words, so it seldom is. */
const MEMO_ENTRIES = 200_000;
const MEMO_LONGEST = 64;

export class Tokenizer {
  /** One more than the largest id; the model's vocabulary may be larger (padding). */
  readonly vocabSize: number;
  /** Text → id of the tokens that text never makes. */
  readonly specialTokens: ReadonlyMap<string, number>;
  /** Text → token of all added tokens, the special ones and the markers. */
  readonly addedTokens: ReadonlyMap<string, AddedToken>;
  /** Ids that end an answer: the tokenizer's eos token, `<|im_end|>`, and those that the model's files name. */
  readonly eosIds: readonly number[];
  /** Ends a document in plain text: `<|endoftext|>`, or else the eos token; null if there is neither. */
  readonly endOfTextId: number | null;
  /** Named in tokenizer_config.json; templates may use them. */
  readonly namedTokens: Readonly<Record<'bos_token' | 'eos_token' | 'pad_token', string | null>>;
  /** From tokenizer_config.json. */
  readonly chatTemplate: string | null;

  readonly #pipeline: Pipeline;
  readonly #split: (text: string) => string[];
  readonly #finish: (piece: string) => string[];
  readonly #memo = new Map<string, readonly number[]>();
  readonly #added: AddedMatcher;
  readonly #special: AddedMatcher;
  readonly #outputs = new Map<number, TokenOutput>();

  constructor(tokenizerJson: string, tokenizerConfig: string, options: TokenizerOptions = {}) {
    const file = options.tokenizerFile ?? 'tokenizer.json';
    const parsed = readTokenizerFile(tokenizerJson, file, options.modelVocabSize);
    const config = readTokenizerConfig(tokenizerConfig, options.configFile ?? 'tokenizer_config.json');
    this.#pipeline = build(parsed, config.json, file);
    [this.#split, this.#finish] = splitPreTokenizer(this.#pipeline.pre_tokenizer);
    this.vocabSize = parsed.vocabSize;
    this.addedTokens = new Map(parsed.added.map((token) => [token.content, token]));
    this.specialTokens = new Map(parsed.added.filter((t) => t.special).map((t) => [t.content, t.id]));
    this.#added = matcherOf(parsed.added.map((token) => token.content));
    this.#special = matcherOf([...this.specialTokens.keys()]);
    this.chatTemplate = config.chatTemplate;
    this.namedTokens = {
      bos_token: config.bosToken,
      eos_token: config.eosToken,
      pad_token: config.padToken,
    };
    const idOf = (text: string | null): number | null =>
      text === null ? null : (this.addedTokens.get(text)?.id ?? parsed.vocab[text] ?? null);
    const eos = [idOf(config.eosToken), idOf('<|im_end|>'), ...(options.eosTokenIds ?? [])];
    this.eosIds = [...new Set(eos.filter((id) => id !== null))];
    this.endOfTextId = idOf('<|endoftext|>') ?? idOf(config.eosToken);
    this.#fillOutputs(parsed, file);
  }

  /** Ids of plain text. Whatever the text holds, no added token comes out: `<|im_end|>` is ten characters here. */
  encodeText(text: string): number[] {
    const ids: number[] = [];
    this.#appendPlain(text, ids);
    return ids;
  }

  /** Ids of a rendered prompt: added tokens in it become their ids. Not for text that a user may have written. */
  encodeRendered(text: string): number[] {
    const ids: number[] = [];
    for (const piece of this.splitAdded(text)) {
      if (typeof piece === 'number') ids.push(piece);
      else this.#appendPlain(piece, ids);
    }
    return ids;
  }

  /** A rendered prompt as maximal runs of plain text and the ids of the added tokens between them. */
  splitAdded(text: string): (string | number)[] {
    if (!this.#added.pattern) return text === '' ? [] : [text];
    const pieces = text.split(this.#added.pattern);
    return pieces
      .map((piece, i) => (i % 2 === 1 ? this.addedTokens.get(piece)!.id : piece))
      .filter((p) => p !== '');
  }

  /** Quick test: false where no added token can stand in this text or begin at its end. */
  mayHoldAdded(text: string): boolean {
    return this.#added.firstCharacters.some((char) => text.includes(char));
  }

  /**
   * The text with `separator` put into everything that is an added token (or only the special ones), or could become
   * one together with what follows the text; taking the separators out again gives the text back.
   */
  breakAdded(text: string, separator: string, specialOnly: boolean): string {
    return breakAdded(text, separator, specialOnly ? this.#special : this.#added);
  }

  /** Unicode normalisation as the tokenizer does it before it splits. */
  normalize(text: string): string {
    return this.#pipeline.normalizer ? this.#pipeline.normalizer(text) : text;
  }

  /** Text of ids; half characters become U+FFFD, ids without a token nothing. Special tokens are kept. */
  decode(ids: Iterable<number>, options: DetokenizerOptions = { skipSpecial: false }): string {
    const stream = this.streamingDetokenizer(options);
    let text = '';
    for (const id of ids) text += stream.push(id);
    return text + stream.flush();
  }

  streamingDetokenizer(options: DetokenizerOptions = {}): StreamingDetokenizer {
    return new StreamingDetokenizer((id) => this.#outputs.get(id), options);
  }

  /** UTF-8 bytes of one token, perhaps part of a character; undefined where no token has this id. */
  tokenBytes(id: number): Uint8Array | undefined {
    return this.#outputs.get(id)?.bytes;
  }

  /** One token as text; parts of characters become U+FFFD. */
  tokenText(id: number): string {
    return this.decode([id]);
  }

  /** Whether an id belongs to an added token, and to which kind. */
  addedKind(id: number): 'special' | 'marker' | null {
    return this.#outputs.get(id)?.added ?? null;
  }

  #appendPlain(text: string, ids: number[]): void {
    if (text === '') return;
    for (const piece of this.#split(this.normalize(text))) {
      let known = this.#memo.get(piece);
      if (known === undefined) {
        known = this.#encodePiece(piece);
        if (piece.length <= MEMO_LONGEST) {
          if (this.#memo.size >= MEMO_ENTRIES) this.#memo.clear();
          this.#memo.set(piece, known);
        }
      }
      // Not push(...known): a piece may be longer than the stack.
      for (const id of known) ids.push(id);
    }
  }

  #encodePiece(piece: string): number[] {
    const { model } = this.#pipeline;
    return model(this.#finish(piece)).map((token) => {
      const id = model.tokens_to_ids.get(token);
      if (id === undefined) throw new Q4Error('Q4900', `no id for the token ${JSON.stringify(token)}`);
      return id;
    });
  }

  #fillOutputs(parsed: TokenizerFile, file: string): void {
    const utf8 = new TextEncoder();
    for (const { content, id, special } of parsed.added)
      this.#outputs.set(id, { bytes: utf8.encode(content), added: special ? 'special' : 'marker' });
    for (const [token, id] of Object.entries(parsed.vocab)) {
      if (this.#outputs.has(id)) continue;
      const bytes = fromByteLevel(token);
      if (bytes === null)
        throw new Q4Error('Q4261', `the token ${JSON.stringify(token)} is not written in bytes`, {
          file,
          expected: 'characters of the byte-level alphabet',
          found: JSON.stringify(token),
        });
      this.#outputs.set(id, { bytes, added: null });
    }
  }
}

function build(parsed: TokenizerFile, config: object, file: string): Pipeline {
  try {
    return new Library(parsed.json, config);
  } catch (cause) {
    throw new Q4Error('Q4262', `the tokenizer library refuses it: ${(cause as Error).message}`, {
      file,
      cause,
    });
  }
}

/**
 * A pre-tokenizer in two parts: one that splits, whose pieces the memo remembers, and the byte-level one behind it,
 * which works on each piece alone and therefore need not run on remembered pieces.
 */
function splitPreTokenizer(whole: PreTokenizer): [(text: string) => string[], (piece: string) => string[]] {
  const parts = whole.tokenizers ?? [whole];
  const last = parts[parts.length - 1]!;
  const first = parts.slice(0, -1);
  const split = (text: string): string[] =>
    first.reduce<string[]>((pieces, part) => part(pieces), [text]).filter((piece) => piece !== '');
  return [split, (piece) => last(piece)];
}
