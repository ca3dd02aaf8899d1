/**
 * Samples → an endless stream of rows → batches. The stream depends on the data, the seed and seq_len only, so batches
 * of 8 rows and 8 batches of one row hold the same rows in the same order, and a cursor resumes it exactly.
 */
import { Q4Error } from '../errors.js';
import { countTrained, IGNORED, type Sample } from './data.js';
import { oneEach, packFirstFit } from './packing.js';
import { permutation, STREAM, uniform } from './philox.js';

/** One pass of the model: B rows of T tokens, row by row. */
export interface Batch {
  readonly rows: number;
  readonly seqLen: number;
  /** [B·T]; padding is token 0. */
  readonly ids: Int32Array;
  /** [B·T]; restart at 0 with every sample. */
  readonly positions: Int32Array;
  /** [B·T]: index in the row of the first token that this one sees, its sample's first. Padding sees only itself. */
  readonly attendFrom: Int32Array;
  /** [B·T]: the *next* token where it counts, otherwise -100; shifted by one inside each sample. */
  readonly labels: Int32Array;
  /** Labels that count. */
  readonly counted: number;
  /** Tokens that are not padding. */
  readonly tokens: number;
}

/** The next row of the stream. Plain data for checkpoints. */
export interface DataCursor {
  readonly epoch: number;
  readonly row: number;
}

export interface StreamOptions {
  readonly seqLen: number;
  readonly seed: number;
  readonly shuffle: boolean;
  readonly pack: boolean;
}

export class RowStream {
  readonly #samples: readonly Sample[];
  readonly #order: (epoch: number) => Uint32Array;
  readonly #lengths: Int32Array;
  readonly #options: StreamOptions;
  #epoch = -1;
  #rows: readonly (readonly number[])[] = [];
  #cursor: DataCursor;

  /**
   * @param order sample numbers of an epoch before shuffling; default each sample once (see mix.ts for others)
   * @param cursor where to begin; default the beginning
   */
  constructor(
    samples: readonly Sample[],
    options: StreamOptions,
    cursor: DataCursor = { epoch: 0, row: 0 },
    order: (epoch: number) => Uint32Array = () => Uint32Array.from({ length: samples.length }, (_, i) => i),
  ) {
    const tooLong = samples.find((sample) => sample.ids.length > options.seqLen);
    if (samples.length === 0 || tooLong)
      throw new Q4Error(
        'Q4315',
        samples.length === 0 ? 'there is no sample' : 'a sample is longer than seq_len',
      );
    this.#samples = samples;
    this.#options = options;
    this.#order = order;
    this.#lengths = Int32Array.from(samples, (sample) => sample.ids.length);
    this.#cursor = cursor;
    if (cursor.row > this.#rowsOf(cursor.epoch).length)
      throw new Q4Error('Q4315', 'the data has fewer rows than the checkpoint has gone through', {
        expected: `at least ${cursor.row} rows`,
        found: `${this.#rows.length} rows`,
        hint: 'The data files changed since the run began; --fresh starts anew.',
      });
  }

  /** Where the next batch begins. */
  get cursor(): DataCursor {
    return this.#cursor;
  }

  /** Rows of one epoch; with packing it differs from epoch to epoch. */
  rowsInEpoch(epoch: number): number {
    return this.#rowsOf(epoch).length;
  }

  /** Steps of `rowsPerStep` rows that go through `epochs` epochs (a fraction ends within the last one). */
  stepsForEpochs(epochs: number, rowsPerStep: number): number {
    let rows = 0;
    for (let epoch = 0; epoch < epochs; epoch++)
      rows += Math.min(1, epochs - epoch) * this.#rowsOf(epoch).length;
    return Math.max(1, Math.ceil(rows / rowsPerStep - 1e-9));
  }

  /** The next rows; the stream goes on into the next epoch where one ends. */
  next(rows: number): Batch {
    const taken: (readonly number[])[] = [];
    let { epoch, row } = this.#cursor;
    while (taken.length < rows) {
      const all = this.#rowsOf(epoch);
      if (row < all.length) taken.push(all[row++]!);
      else [epoch, row] = [epoch + 1, 0];
    }
    this.#cursor = { epoch, row };
    return this.#fill(taken);
  }

  /** One epoch from its beginning in batches of at most `rows` rows, whatever the cursor says: for evaluation. */
  *epochBatches(rows: number, epoch = 0): Iterable<Batch> {
    const all = this.#rowsOf(epoch);
    for (let i = 0; i < all.length; i += rows) yield this.#fill(all.slice(i, i + rows));
  }

  #rowsOf(epoch: number): readonly (readonly number[])[] {
    if (epoch === this.#epoch) return this.#rows;
    const { seed, shuffle, pack, seqLen } = this.#options;
    const order = this.#order(epoch);
    if (shuffle) {
      const places = permutation(order.length, seed, epoch);
      const before = order.slice();
      for (let i = 0; i < order.length; i++) order[i] = before[places[i]!]!;
    }
    this.#rows = pack ? packFirstFit(order, this.#lengths, seqLen) : oneEach(order);
    this.#epoch = epoch;
    return this.#rows;
  }

  #fill(rows: readonly (readonly number[])[]): Batch {
    const { seqLen } = this.#options;
    const size = rows.length * seqLen;
    const ids = new Int32Array(size);
    const positions = new Int32Array(size);
    const attendFrom = new Int32Array(size);
    const labels = new Int32Array(size).fill(IGNORED);
    let [counted, tokens] = [0, 0];
    rows.forEach((row, r) => {
      let at = 0;
      for (const number of row) {
        const sample = this.#samples[number]!;
        const { length } = sample.ids;
        const base = r * seqLen + at;
        ids.set(sample.ids, base);
        labels.set(sample.labels.subarray(1), base);
        for (let i = 0; i < length; i++) positions[base + i] = i;
        attendFrom.fill(at, base, base + length);
        counted += countTrained(sample.labels);
        tokens += length;
        at += length;
      }
      for (let i = at; i < seqLen; i++) attendFrom[r * seqLen + i] = i;
    });
    return { rows: rows.length, seqLen, ids, positions, attendFrom, labels, counted, tokens };
  }
}

/** Splits off a share of the samples for evaluation; which ones depends on the seed and their number only. */
export function holdOut(
  samples: readonly Sample[],
  fraction: number,
  seed: number,
): { train: Sample[]; evaluation: Sample[] } {
  const train: Sample[] = [];
  const evaluation: Sample[] = [];
  samples.forEach((sample, i) =>
    (uniform(seed, STREAM.holdOut, 0, i) < fraction ? evaluation : train).push(sample),
  );
  if (train.length === 0 || evaluation.length === 0)
    throw new Q4Error('Q4315', `holding out ${fraction} of ${samples.length} samples leaves one side empty`, {
      expected: 'samples to train on and samples to evaluate',
      found: `${train.length} to train on, ${evaluation.length} to evaluate`,
      hint: 'Give eval.path a file of its own, or change eval.fraction.',
    });
  return { train, evaluation };
}
