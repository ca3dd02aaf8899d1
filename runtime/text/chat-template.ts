/**
 * Messages → tokens, through the model's own chat template. What people write stays text: special tokens come from the
 * template alone. Where no message holds such text, the ids are those of encoding the whole rendered prompt.
 */
import { Q4Error } from '../errors.js';
import { compileTemplate, type SandboxedTemplate } from './template-sandbox.js';
import type { Tokenizer } from './tokenizer.js';

export interface ChatMessage {
  readonly role: string;
  /** Text, or parts as templates of multimodal models take them. */
  readonly content?: unknown;
  /** tool_calls, reasoning_content, name … as the template wants them. */
  readonly [field: string]: unknown;
}

export interface RenderOptions {
  /** End with the beginning of an assistant turn, for the model to go on from. Default false. */
  readonly addGenerationPrompt?: boolean;
  readonly tools?: readonly unknown[];
  /** Further variables of the template, e.g. { enable_thinking: false }. */
  readonly variables?: Readonly<Record<string, unknown>>;
}

export interface TrainingTokens {
  readonly ids: number[];
  /** 1 for each token that the assistant must say itself, the end of its turn included; 0 for the rest. */
  readonly trained: Uint8Array;
}

/** Roles whose words may hold the tokenizer's markers (`<think>`, `<tool_call>`); nobody's may hold special tokens. */
const MARKER_ROLES = new Set(['system', 'developer', 'assistant']);

/**
 * Breaks up what looks like an added token in the contents, by a character that stands in none of them; it is taken
 * out again behind the template. Unicode noncharacters are not in text, and if they are, another one is taken.
 */
const NONCHARACTERS = Array.from({ length: 32 }, (_, i) => String.fromCharCode(0xfdd0 + i));

export class ChatTemplate {
  readonly source: string;
  readonly #template: SandboxedTemplate;
  readonly #tokenizer: Tokenizer;
  readonly #file: string;
  readonly #eos: ReadonlySet<number>;

  /** @param file for messages */
  constructor(source: string, tokenizer: Tokenizer, file = 'tokenizer_config.json') {
    this.source = source;
    this.#template = compileTemplate(source, file);
    this.#tokenizer = tokenizer;
    this.#file = file;
    this.#eos = new Set(tokenizer.eosIds);
  }

  /** The prompt as text, for people to read. */
  render(messages: readonly ChatMessage[], options: RenderOptions = {}): string {
    return this.#render(messages, options);
  }

  /** The prompt as ids. */
  encode(messages: readonly ChatMessage[], options: RenderOptions = {}): number[] {
    const guard = this.#guard(messages, options);
    const text = this.#render(guard.messages, { ...options, ...guard.options });
    return this.#pieces(text, guard.separator).flatMap((piece) =>
      typeof piece === 'number' ? [piece] : this.#tokenizer.encodeText(piece),
    );
  }

  /**
   * A whole conversation with the tokens that count: from where the prompt for an assistant turn ends to the token
   * that ends the turn. @throws Q4305 where the template does not let that be found
   */
  encodeForTraining(messages: readonly ChatMessage[], options: RenderOptions = {}): TrainingTokens {
    const guard = this.#guard(messages, options);
    const rendered = { ...options, ...guard.options };
    const text = this.#render(guard.messages, { ...rendered, addGenerationPrompt: false });
    const starts: number[] = [];
    guard.messages.forEach((message, i) => {
      if (message.role !== 'assistant') return;
      const prompt = this.#render(guard.messages.slice(0, i), { ...rendered, addGenerationPrompt: true });
      if (!text.startsWith(prompt))
        throw new Q4Error(
          'Q4305',
          `the prompt before message ${i + 1} is not the beginning of the conversation`,
          {
            file: this.#file,
            expected: 'a template that renders the turns so far the same way whatever follows',
            found: JSON.stringify(text.slice(0, 80)),
          },
        );
      starts.push(prompt.length);
    });
    return this.#markTurns(text, starts, guard.separator);
  }

  /** @param starts of the assistant's turns, in characters of `text`, rising */
  #markTurns(text: string, starts: readonly number[], separator: string | null): TrainingTokens {
    const ids: number[] = [];
    const trained: number[] = [];
    const waiting = [...starts];
    let at = 0;
    let open = false;
    const push = (id: number): void => {
      ids.push(id);
      trained.push(open ? 1 : 0);
    };
    for (const piece of this.#tokenizer.splitAdded(text)) {
      const length = typeof piece === 'number' ? this.#tokenizer.tokenText(piece).length : piece.length;
      const turn = waiting[0] !== undefined && waiting[0] < at + length ? waiting.shift()! - at : null;
      if (turn !== null && (turn < 0 || open)) throw this.#noEnd(text);
      if (typeof piece === 'number') {
        if (turn !== null) open = true;
        push(piece);
        if (this.#eos.has(piece)) open = false;
      } else {
        // Bytes of this run up to where the turn begins; a token that straddles the place is not counted.
        const bytesBefore = turn === null ? 0 : this.#byteLength(clean(piece.slice(0, turn), separator));
        let bytes = 0;
        for (const id of this.#tokenizer.encodeText(clean(piece, separator))) {
          if (turn !== null && bytes >= bytesBefore) open = true;
          push(id);
          bytes += this.#tokenizer.tokenBytes(id)!.length;
        }
        if (turn !== null) open = true;
      }
      at += length;
    }
    if (open || waiting.length > 0) throw this.#noEnd(text);
    return { ids, trained: Uint8Array.from(trained) };
  }

  #noEnd(text: string): Q4Error {
    const ends = [...this.#eos].map((id) => this.#tokenizer.tokenText(id));
    return new Q4Error('Q4305', 'an assistant turn does not end with an end-of-turn token', {
      file: this.#file,
      expected: ends.join(' or ') || 'an eos_token in tokenizer_config.json',
      found: JSON.stringify(text.slice(-40)),
    });
  }

  #byteLength(text: string): number {
    return new TextEncoder().encode(this.#tokenizer.normalize(text)).length;
  }

  #pieces(text: string, separator: string | null): (string | number)[] {
    return this.#tokenizer
      .splitAdded(text)
      .map((piece) => (typeof piece === 'number' ? piece : clean(piece, separator)))
      .filter((piece) => piece !== '');
  }

  #render(messages: readonly ChatMessage[], options: RenderOptions): string {
    return this.#template.render({
      ...this.#tokenizer.namedTokens,
      ...options.variables,
      messages,
      tools: options.tools,
      add_generation_prompt: options.addGenerationPrompt ?? false,
    });
  }

  /** The same messages and options with everything in them that looks like a special token broken up. */
  #guard(
    messages: readonly ChatMessage[],
    options: RenderOptions,
  ): {
    messages: readonly ChatMessage[];
    options: Pick<RenderOptions, 'tools' | 'variables'>;
    separator: string | null;
  } {
    const given = { tools: options.tools ?? [], variables: options.variables ?? {} };
    const all = JSON.stringify([messages, given]);
    if (!this.#tokenizer.mayHoldAdded(all)) return { messages, options: {}, separator: null };
    const separator = NONCHARACTERS.find((char) => !all.includes(char) && !this.source.includes(char));
    if (separator === undefined)
      throw new Q4Error('Q4303', 'the messages hold every Unicode noncharacter', {
        file: this.#file,
        hint: 'Remove the characters U+FDD0 to U+FDEF from the text.',
      });
    const strict = (text: string): string => this.#tokenizer.breakAdded(text, separator, false);
    const lenient = (text: string): string => this.#tokenizer.breakAdded(text, separator, true);
    return {
      separator,
      messages: messages.map(
        (message) => mapText(message, MARKER_ROLES.has(message.role) ? lenient : strict) as ChatMessage,
      ),
      options: {
        ...(options.tools ? { tools: mapText(options.tools, strict) as unknown[] } : {}),
        ...(options.variables
          ? { variables: mapText(options.variables, lenient) as Record<string, unknown> }
          : {}),
      },
    };
  }
}

const clean = (text: string, separator: string | null): string =>
  separator === null ? text : text.replaceAll(separator, '');

/** A copy with every text in it replaced, keys of objects too. */
function mapText(value: unknown, change: (text: string) => string): unknown {
  if (typeof value === 'string') return change(value);
  if (Array.isArray(value)) return value.map((entry) => mapText(entry, change));
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(
    Object.entries(value).map(([key, entry]) => [change(key), mapText(entry, change)]),
  );
}
