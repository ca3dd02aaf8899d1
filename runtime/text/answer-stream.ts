/** One answer while it is made: tokens in, text out, ended by a token or by a stop string. */
import type { Tokenizer } from './tokenizer.js';

/** Where the earliest stop string begins, -1 if none does. */
const findStop = (text: string, stops: readonly string[]): number =>
  stops.reduce((first, stop) => {
    const at = text.indexOf(stop);
    return at >= 0 && (first < 0 || at < first) ? at : first;
  }, -1);

/** Length of the longest end of `text` that could still grow into a stop string: it is not shown yet. */
function heldBack(text: string, stops: readonly string[]): number {
  let most = 0;
  for (const stop of stops)
    for (let n = Math.min(stop.length - 1, text.length); n > most; n--)
      if (text.endsWith(stop.slice(0, n))) most = n;
  return most;
}

export class AnswerStream {
  #text = '';
  #shown = 0;
  #stopped = false;
  readonly #detokenizer;

  /** @param show gets the text in pieces of whole characters, never any of a stop string */
  constructor(
    private readonly tokenizer: Tokenizer,
    private readonly stops: readonly string[],
    private readonly show: (text: string) => void,
  ) {
    this.#detokenizer = tokenizer.streamingDetokenizer();
  }

  get text(): string {
    return this.#text;
  }

  /** True when this token ends the answer. */
  push(token: number): boolean {
    if (this.tokenizer.eosIds.includes(token)) return true;
    this.#text += this.#detokenizer.push(token);
    const stop = findStop(this.#text, this.stops);
    this.#stopped = stop >= 0;
    if (this.#stopped) this.#text = this.#text.slice(0, stop);
    this.#showUntil(this.#text.length - (this.#stopped ? 0 : heldBack(this.#text, this.stops)));
    return this.#stopped;
  }

  /** No more tokens: what was held back belongs to the answer after all. */
  finish(): void {
    if (!this.#stopped) this.#text += this.#detokenizer.flush();
    this.#showUntil(this.#text.length);
  }

  #showUntil(end: number): void {
    if (end <= this.#shown) return;
    this.show(this.#text.slice(this.#shown, end));
    this.#shown = end;
  }
}
