/** Everything about a model that has to do with text: its tokenizer, its chat template, and the files they stand in. */
import { Q4Error } from '../errors.js';
import { ChatTemplate } from './chat-template.js';
import { parseJson } from './tokenizer-file.js';
import { Tokenizer } from './tokenizer.js';

/** The part of a stage's files that is needed here. */
export interface TextFiles {
  exists(path: string): Promise<boolean>;
  readText(path: string, maxBytes?: number): Promise<string>;
  join(...parts: string[]): string;
}

export interface ModelText {
  readonly tokenizer: Tokenizer;
  /** Null where the model has none (a base model): then only plain text can be trained and asked. */
  readonly template: ChatTemplate | null;
  /** File name → text as read, to be written beside exports unchanged. */
  readonly files: ReadonlyMap<string, string>;
}

const MOST_BYTES = 64 * 1024 * 1024;
const OPTIONAL = [
  'tokenizer_config.json',
  'chat_template.jinja',
  'generation_config.json',
  'special_tokens_map.json',
];

/**
 * @param path a directory with tokenizer.json, or a tokenizer.json; the other files are looked for beside it
 * @param modelVocabSize rows of the model's embedding
 */
export async function loadModelText(
  files: TextFiles,
  path: string,
  modelVocabSize: number,
): Promise<ModelText> {
  const isFile = path.endsWith('.json');
  const directory = isFile ? path.replace(/[^/\\]*$/, '.') : path;
  const tokenizerFile = isFile ? path : files.join(path, 'tokenizer.json');
  if (!(await files.exists(tokenizerFile)))
    throw new Q4Error('Q4261', 'there is no tokenizer.json', {
      file: tokenizerFile,
      expected: 'a directory with tokenizer.json and tokenizer_config.json, or a tokenizer.json',
      found: 'no such file',
    });
  const read = new Map([['tokenizer.json', await files.readText(tokenizerFile, MOST_BYTES)]]);
  for (const name of OPTIONAL) {
    const file = files.join(directory, name);
    if (await files.exists(file)) read.set(name, await files.readText(file, MOST_BYTES));
  }
  const configFile = files.join(directory, 'tokenizer_config.json');
  const generationFile = files.join(directory, 'generation_config.json');
  const tokenizer = new Tokenizer(read.get('tokenizer.json')!, read.get('tokenizer_config.json') ?? '{}', {
    tokenizerFile,
    configFile,
    modelVocabSize,
    eosTokenIds: readEosIds(read.get('generation_config.json'), generationFile, modelVocabSize),
  });
  const jinja = read.get('chat_template.jinja');
  const source = jinja ?? tokenizer.chatTemplate;
  const file = jinja === undefined ? configFile : files.join(directory, 'chat_template.jinja');
  return {
    tokenizer,
    template: source === null ? null : new ChatTemplate(source, tokenizer, file),
    files: read,
  };
}

/** `eos_token_id` of generation_config.json: an id or a list of ids. */
export function readEosIds(text: string | undefined, file: string, modelVocabSize: number): number[] {
  if (text === undefined) return [];
  const json = parseJson(text, file) as { eos_token_id?: unknown } | null;
  const value = json?.eos_token_id ?? [];
  const ids: unknown[] = Array.isArray(value) ? value : [value];
  const wrong = ids.find(
    (id) => !Number.isInteger(id) || (id as number) < 0 || (id as number) >= modelVocabSize,
  );
  if (wrong !== undefined)
    throw new Q4Error('Q4263', 'eos_token_id is not a token of the model', {
      file,
      expected: `an id from 0 to ${modelVocabSize - 1}, or a list of such ids`,
      found: JSON.stringify(wrong),
    });
  return ids as number[];
}
