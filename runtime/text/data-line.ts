/** One line of a data file → a checked record. Says exactly what is wrong with a line and where. */
import { Q4Error, type ErrorDetails } from '../errors.js';
import type { ChatMessage } from './chat-template.js';
import { findJsonMistake } from './json-position.js';

export type DataFormat = 'messages' | 'prompt' | 'text' | 'tokens' | 'tsv';

export type DataRecord =
  | { readonly kind: 'chat'; readonly messages: readonly ChatMessage[]; readonly tools?: readonly unknown[] }
  | { readonly kind: 'text'; readonly text: string }
  | { readonly kind: 'tokens'; readonly ids: readonly number[]; readonly labels: readonly number[] };

export interface LinePlace {
  readonly file: string;
  /** 1-based. */
  readonly line: number;
}

/** Label of a token that does not count. */
export const IGNORED = -100;

const ROLES = ['system', 'developer', 'user', 'assistant', 'tool'];

export const FORMAT_SHAPES: Readonly<Record<DataFormat, string>> = {
  messages: '{"messages": [{"role": "user", "content": "…"}, …]}',
  prompt: '{"prompt": "…", "completion": "…"}',
  text: '{"text": "…"}',
  tokens: '{"input_ids": [1, 2, …], "labels": [-100, 2, …]}',
  tsv: 'prompt<TAB>target',
};

type Fields = Readonly<Record<string, unknown>>;

const show = (value: unknown): string => {
  const text = value === undefined ? 'nothing' : JSON.stringify(value);
  return text.length > 60 ? `${text.slice(0, 57)}...` : text;
};

function wrong(place: LinePlace, message: string, expected: string, found: unknown, entry?: string): Q4Error {
  const details: ErrorDetails = { ...place, expected, found: show(found), ...(entry ? { entry } : {}) };
  return new Q4Error('Q4311', message, details);
}

/** The JSON object on a line of a .jsonl file. */
export function parseJsonLine(line: string, place: LinePlace): Fields {
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch (cause) {
    const mistake = findJsonMistake(line);
    const { expected, found, col } = mistake ?? { expected: 'JSON', found: (cause as Error).message, col: 1 };
    throw new Q4Error('Q4310', `not valid JSON: expected ${expected}, found ${found}`, {
      ...place,
      col,
      expected,
      found,
      cause,
    });
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw wrong(place, 'a line of a .jsonl file is an object', 'an object', value);
  return value as Fields;
}

/** The format that the keys of a line speak of, or null. */
export function formatOf(fields: Fields): Exclude<DataFormat, 'tsv'> | null {
  if ('messages' in fields) return 'messages';
  if ('prompt' in fields || 'completion' in fields) return 'prompt';
  if ('text' in fields) return 'text';
  if ('input_ids' in fields) return 'tokens';
  return null;
}

function textOf(fields: Fields, key: string, place: LinePlace, shape: string): string {
  const value = fields[key];
  if (typeof value !== 'string') throw wrong(place, `'${key}' is not text`, shape, value, key);
  return value;
}

const exchange = (prompt: string, completion: string): DataRecord => ({
  kind: 'chat',
  messages: [
    { role: 'user', content: prompt },
    { role: 'assistant', content: completion },
  ],
});

/** @param vocabSize ids must be below it */
export function readFields(
  fields: Fields,
  format: Exclude<DataFormat, 'tsv'>,
  place: LinePlace,
  vocabSize: number,
): DataRecord {
  const shape = FORMAT_SHAPES[format];
  switch (format) {
    case 'messages':
      return readMessages(fields, place, shape);
    case 'prompt':
      return exchange(textOf(fields, 'prompt', place, shape), textOf(fields, 'completion', place, shape));
    case 'text':
      return { kind: 'text', text: textOf(fields, 'text', place, shape) };
    case 'tokens':
      return readTokens(fields, place, shape, vocabSize);
  }
}

export function readTsv(line: string, place: LinePlace): DataRecord {
  const parts = line.split('\t');
  if (parts.length !== 2)
    throw wrong(
      place,
      `a line of a .tsv file has one tab, this one has ${parts.length - 1}`,
      FORMAT_SHAPES.tsv,
      line,
    );
  return exchange(parts[0]!, parts[1]!);
}

function readMessages(fields: Fields, place: LinePlace, shape: string): DataRecord {
  const { messages, tools } = fields;
  if (!Array.isArray(messages) || messages.length === 0)
    throw wrong(place, "'messages' is not a list of messages", shape, messages, 'messages');
  if (tools !== undefined && tools !== null && !Array.isArray(tools))
    throw wrong(place, "'tools' is not a list", '"tools": [{"type": "function", …}]', tools, 'tools');
  messages.forEach((message: unknown, i) => {
    const entry = `messages[${i}]`;
    if (typeof message !== 'object' || message === null || Array.isArray(message))
      throw wrong(place, `${entry} is not a message`, shape, message, entry);
    const { role, content, tool_calls: calls } = message as Fields;
    if (typeof role !== 'string' || !ROLES.includes(role))
      throw wrong(place, `${entry}.role is none that is known`, ROLES.join(', '), role, `${entry}.role`);
    const isText = typeof content === 'string' || Array.isArray(content);
    if (!isText && !((content === null || content === undefined) && Array.isArray(calls)))
      throw wrong(place, `${entry}.content is not text`, '"content": "…"', content, `${entry}.content`);
  });
  return {
    kind: 'chat',
    messages: messages as ChatMessage[],
    ...(Array.isArray(tools) ? { tools: tools as unknown[] } : {}),
  };
}

function readTokens(fields: Fields, place: LinePlace, shape: string, vocabSize: number): DataRecord {
  const { input_ids: ids, labels = ids } = fields;
  const list = (value: unknown, key: string, ignored: boolean): number[] => {
    if (!Array.isArray(value) || value.length === 0)
      throw wrong(place, `'${key}' is not a list of token ids`, shape, value, key);
    const at = value.findIndex(
      (id) => !Number.isInteger(id) || !((id >= 0 && id < vocabSize) || (ignored && id === IGNORED)),
    );
    if (at < 0) return value as number[];
    const range = `a whole number from 0 to ${vocabSize - 1}${ignored ? `, or ${IGNORED}` : ''}`;
    throw new Q4Error('Q4314', `${key}[${at}] is not a token of the model`, {
      ...place,
      entry: `${key}[${at}]`,
      expected: range,
      found: show(value[at]),
    });
  };
  const checked = { ids: list(ids, 'input_ids', false), labels: list(labels, 'labels', true) };
  if (checked.labels.length !== checked.ids.length)
    throw wrong(
      place,
      "'labels' and 'input_ids' differ in length",
      `${checked.ids.length} labels, one at the place of each token`,
      checked.labels.length,
      'labels',
    );
  return { kind: 'tokens', ...checked };
}
