/** Data files → samples: token ids with the labels that count. Every bad line is named, up to 20 at once. */
import { Q4Error, Q4Errors } from '../errors.js';
import {
  FORMAT_SHAPES,
  formatOf,
  IGNORED,
  parseJsonLine,
  readFields,
  readTsv,
  type DataFormat,
  type DataRecord,
  type LinePlace,
} from './data-line.js';
import type { ModelText } from './model-text.js';

export type { DataFormat } from './data-line.js';
export { IGNORED } from './data-line.js';

export interface DataSource {
  readonly path: string;
  /** Default auto: by the name and the first line. */
  readonly format?: DataFormat | 'auto';
  /** Use only the first so many lines. */
  readonly maxSamples?: number;
}

export interface ReadOptions {
  /** Null: only input_ids can be read. */
  readonly text: ModelText | null;
  /** Rows of the model's embedding. */
  readonly vocabSize: number;
  /** Longer samples are cut to this many tokens, which is counted. */
  readonly seqLen: number;
  /** Tokens that count in chats: the assistant's with the end of its turn, or all. Default assistant. */
  readonly trainOn?: 'assistant' | 'all';
  /** Put before chats that have no system message. */
  readonly system?: string;
  /** Further variables of the chat template. */
  readonly variables?: Readonly<Record<string, unknown>>;
}

export interface Sample {
  readonly ids: Int32Array;
  /** At the place of the token it labels; -100 does not count. */
  readonly labels: Int32Array;
  /** Line of the file, 1-based. */
  readonly line: number;
}

export interface DataReport {
  readonly path: string;
  readonly format: DataFormat;
  readonly samples: number;
  /** After cutting. */
  readonly tokens: number;
  /** Tokens that count towards the loss. */
  readonly trainedTokens: number;
  readonly truncatedSamples: number;
  /** Cut off and lost. */
  readonly truncatedTokens: number;
  readonly longestTokens: number;
}

export interface DataSet {
  readonly samples: readonly Sample[];
  readonly report: DataReport;
}

const MOST_ERRORS = 20;

/** @param lines of the file, without line ends */
export async function readData(
  lines: AsyncIterable<string>,
  source: DataSource,
  options: ReadOptions,
): Promise<DataSet> {
  const file = source.path;
  let format: DataFormat | null = source.format === 'auto' || !source.format ? null : source.format;
  if (format === null && /\.tsv$/i.test(file)) format = 'tsv';
  const named = format !== null;
  const samples: Sample[] = [];
  const errors: Q4Error[] = [];
  const cut = { samples: 0, tokens: 0 };
  let line = 0;
  for await (const raw of lines) {
    line++;
    const text = line === 1 ? raw.replace(/^\uFEFF/, '') : raw;
    if (text.trim() === '') continue;
    if (source.maxSamples !== undefined && samples.length >= source.maxSamples) break;
    const place: LinePlace = { file, line };
    try {
      let record: DataRecord;
      if (format === 'tsv') record = readTsv(text, place);
      else {
        const fields = parseJsonLine(text, place);
        const kind = formatOf(fields);
        format ??= kind;
        if (format === null) throw unknownFormat(place, fields);
        // A line of a named format that lacks all of its keys is told what is missing, not that it is another format.
        if (kind !== null && kind !== format) throw mixedFormats(place, format, kind, named);
        record = readFields(fields, format, place, options.vocabSize);
      }
      samples.push(encode(record, place, options, cut));
    } catch (thrown) {
      if (!(thrown instanceof Q4Error)) throw thrown;
      errors.push(thrown.details.line === undefined ? placed(thrown, place) : thrown);
      // Without a format every further line would repeat the same mistake.
      if (thrown.code === 'Q4316' || errors.length >= MOST_ERRORS) break;
    }
  }
  if (errors.length > 0) throw new Q4Errors(errors);
  if (samples.length === 0 || format === null)
    throw new Q4Error('Q4315', 'the data file holds no sample', {
      file,
      expected: Object.values(FORMAT_SHAPES).join(' or '),
      found: line === 0 ? 'an empty file' : `${line} empty lines`,
    });
  return { samples, report: report(file, format, samples, cut) };
}

/** Errors of the template or tokenizer know nothing of lines; the reader of the file does. */
function placed(error: Q4Error, place: LinePlace): Q4Error {
  const details = { ...error.details, ...place };
  if (error.details.file !== undefined) details.hint ??= `The template stands in ${error.details.file}.`;
  return new Q4Error(error.code, error.message, details);
}

function unknownFormat(place: LinePlace, fields: object): Q4Error {
  return new Q4Error('Q4316', 'no known data format has these keys', {
    ...place,
    expected: Object.values(FORMAT_SHAPES).slice(0, 4).join(' or '),
    found: `the keys ${Object.keys(fields).slice(0, 8).join(', ') || '(none)'}`,
  });
}

function mixedFormats(place: LinePlace, format: DataFormat, kind: DataFormat, named: boolean): Q4Error {
  return new Q4Error('Q4312', `a line of format '${kind}' in a file of format '${format}'`, {
    ...place,
    expected: FORMAT_SHAPES[format],
    found: FORMAT_SHAPES[kind],
    hint: named
      ? `The format '${format}' is set in the pipeline.`
      : 'The first line decides the format of a file.',
  });
}

function encode(
  record: DataRecord,
  place: LinePlace,
  options: ReadOptions,
  cut: { samples: number; tokens: number },
): Sample {
  const whole = toTokens(record, place, options);
  const { length } = whole.ids;
  if (length > options.seqLen) {
    cut.samples++;
    cut.tokens += length - options.seqLen;
  }
  const ids = Int32Array.from(whole.ids.slice(0, options.seqLen));
  const labels = Int32Array.from(whole.labels.slice(0, options.seqLen));
  // The first token is predicted from nothing, so its label never counts.
  if (!labels.subarray(1).some((label) => label !== IGNORED)) {
    const cutAway = whole.labels.slice(1).some((label) => label !== IGNORED);
    throw new Q4Error('Q4313', 'no token of this sample counts towards the loss', {
      ...place,
      expected: 'at least one token to learn, behind the first one',
      found: cutAway
        ? `an answer that begins behind token ${options.seqLen}`
        : `${length} tokens without a label`,
      hint: cutAway ? `Raise seq_len above ${options.seqLen}.` : 'Remove the line, or give it an answer.',
    });
  }
  return { ids, labels, line: place.line };
}

function toTokens(
  record: DataRecord,
  place: LinePlace,
  options: ReadOptions,
): { ids: readonly number[]; labels: readonly number[] } {
  if (record.kind === 'tokens') return record;
  const { text } = options;
  if (text === null)
    throw new Q4Error('Q4317', 'text cannot be read without a tokenizer', {
      ...place,
      expected: FORMAT_SHAPES.tokens,
      hint: 'Give load-dat the key tokenizer.',
    });
  if (record.kind === 'text') {
    const end = text.tokenizer.endOfTextId;
    const ids = text.tokenizer.encodeText(record.text);
    if (end !== null) ids.push(end);
    return { ids, labels: ids };
  }
  if (text.template === null)
    throw new Q4Error('Q4301', 'the model has no chat template', { ...place, expected: FORMAT_SHAPES.text });
  const hasSystem = record.messages[0]?.role === 'system';
  const messages =
    options.system === undefined || hasSystem
      ? record.messages
      : [{ role: 'system', content: options.system }, ...record.messages];
  const render = {
    ...(record.tools ? { tools: record.tools } : {}),
    ...(options.variables ? { variables: options.variables } : {}),
  };
  if (options.trainOn === 'all') {
    const ids = text.template.encode(messages, render);
    return { ids, labels: ids };
  }
  const { ids, trained } = text.template.encodeForTraining(messages, render);
  return { ids, labels: ids.map((id, i) => (trained[i] === 1 ? id : IGNORED)) };
}

function report(
  path: string,
  format: DataFormat,
  samples: readonly Sample[],
  cut: { samples: number; tokens: number },
): DataReport {
  let [tokens, trainedTokens, longestTokens] = [0, 0, 0];
  for (const { ids, labels } of samples) {
    tokens += ids.length;
    trainedTokens += countTrained(labels);
    longestTokens = Math.max(longestTokens, ids.length);
  }
  return {
    path,
    format,
    samples: samples.length,
    tokens,
    trainedTokens,
    truncatedSamples: cut.samples,
    truncatedTokens: cut.tokens,
    longestTokens,
  };
}

/** Labels that count: all but the first, which nothing predicts, and the ignored ones. */
export function countTrained(labels: Int32Array): number {
  let count = 0;
  for (let i = 1; i < labels.length; i++) if (labels[i] !== IGNORED) count++;
  return count;
}
