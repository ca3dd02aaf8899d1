/** From tokens back to text, one at a time, without ever showing half a character. */

/** What a token is when it is written out: bytes that may end within a character, or a whole added token. */
export interface TokenOutput {
  readonly bytes: Uint8Array;
  /** Set for added tokens: they end whatever character was begun before them. */
  readonly added: 'special' | 'marker' | null;
}

export interface DetokenizerOptions {
  /** Leave special tokens out. Default true: they are for machines. */
  readonly skipSpecial?: boolean;
}

/** Text of a stream of tokens; all pieces together equal the text of all tokens decoded at once. */
export class StreamingDetokenizer {
  // Not fatal: bytes that are no UTF-8 become U+FFFD once it is certain that they are none.
  readonly #decoder = new TextDecoder('utf-8', { ignoreBOM: true });
  readonly #output: (id: number) => TokenOutput | undefined;
  readonly #skipSpecial: boolean;

  constructor(output: (id: number) => TokenOutput | undefined, options: DetokenizerOptions = {}) {
    this.#output = output;
    this.#skipSpecial = options.skipSpecial ?? true;
  }

  /** Whole characters that this token completes; ids that no token has (padding of the vocabulary) give nothing. */
  push(id: number): string {
    const token = this.#output(id);
    if (token === undefined || (this.#skipSpecial && token.added === 'special')) return '';
    if (token.added === null) return this.#decoder.decode(token.bytes, { stream: true });
    return this.flush() + this.#decoder.decode(token.bytes);
  }

  /** What is left at the end: U+FFFD for a character that was begun and not finished. */
  flush(): string {
    return this.#decoder.decode();
  }
}
