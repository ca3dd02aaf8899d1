/** From the data files that a pipeline names to the stream of micro batches that training reads. */
import type { ModelText } from '../text/model-text.js';
import { holdOut, RowStream, type Batch, type DataCursor } from '../text/batching.js';
import { readData, IGNORED, type DataFormat, type DataReport, type Sample } from '../text/data.js';
import { mixOrder } from '../text/mix.js';

export interface SourceParams {
  readonly path: string;
  readonly format: DataFormat | 'auto';
  readonly max_samples?: number;
  readonly weight?: number;
  readonly repeat: number;
}

export interface DataParams {
  readonly data: SourceParams | readonly SourceParams[];
  readonly system?: string;
  readonly seq_len: number;
  readonly batch_size: number;
  readonly shuffle: boolean;
  readonly pack: boolean;
  readonly train_on: 'assistant' | 'all';
  readonly eval?: {
    readonly fraction?: number;
    readonly path?: string;
    readonly format: DataFormat | 'auto';
    readonly batches: number;
  };
}

export interface TrainingData {
  /** The endless stream of training rows, from `cursor` on. */
  readonly stream: (cursor?: DataCursor) => RowStream;
  /** Whole batches, filled up with rows that do not count; null without `eval`. */
  readonly evaluation: readonly Batch[] | null;
  readonly reports: readonly DataReport[];
}

type ReadLines = (path: string) => AsyncIterable<string>;

/** Fills a batch up to `rows` rows: programs have one shape. */
export function padRows(batch: Batch, rows: number): Batch {
  if (batch.rows === rows) return batch;
  const { seqLen } = batch;
  const size = rows * seqLen;
  const padded = (values: Int32Array, fill: (i: number) => number): Int32Array =>
    Int32Array.from({ length: size }, (_, i) => (i < values.length ? values[i]! : fill(i)));
  return {
    ...batch,
    rows,
    ids: padded(batch.ids, () => 0),
    positions: padded(batch.positions, () => 0),
    attendFrom: padded(batch.attendFrom, (i) => i % seqLen),
    labels: padded(batch.labels, () => IGNORED),
  };
}

/** @throws Q4Error, Q4Errors: Q43xx with file and line. */
export async function readTrainingData(
  params: DataParams,
  text: ModelText | null,
  vocabSize: number,
  seed: number,
  readLines: ReadLines,
): Promise<TrainingData> {
  const options = {
    text,
    vocabSize,
    seqLen: params.seq_len,
    trainOn: params.train_on,
    ...(params.system !== undefined && { system: params.system }),
  };
  const read = (path: string, format: DataFormat | 'auto', maxSamples?: number) =>
    readData(readLines(path), { path, format, ...(maxSamples !== undefined && { maxSamples }) }, options);
  const sources = 'path' in params.data ? [params.data] : params.data;
  const reports: DataReport[] = [];
  const lists: Sample[][] = [];
  let held: Sample[] = [];
  for (const source of sources) {
    const { samples, report } = await read(source.path, source.format, source.max_samples);
    reports.push(report);
    const split = params.eval?.fraction === undefined ? null : holdOut(samples, params.eval.fraction, seed);
    lists.push(split ? split.train : [...samples]);
    held = [...held, ...(split?.evaluation ?? [])];
  }
  if (params.eval?.path !== undefined) held = [...(await read(params.eval.path, params.eval.format)).samples];
  const order = mixOrder(
    lists.map(({ length }, i) => ({
      samples: length,
      repeat: sources[i]!.repeat,
      ...(sources[i]!.weight !== undefined && { weight: sources[i]!.weight }),
    })),
    seed,
  );
  const { seq_len: seqLen, shuffle, pack, batch_size: rows } = params;
  const samples = lists.flat();
  const stream = (cursor?: DataCursor): RowStream =>
    new RowStream(samples, { seqLen, seed, shuffle, pack }, cursor, order);
  if (held.length === 0) return { stream, evaluation: null, reports };
  const evaluation = [
    ...new RowStream(held, { seqLen, seed, shuffle: false, pack: true }).epochBatches(rows),
  ];
  const most = params.eval!.batches > 0 ? params.eval!.batches : evaluation.length;
  return { stream, evaluation: evaluation.slice(0, most).map((batch) => padRows(batch, rows)), reports };
}
