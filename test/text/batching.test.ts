import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { readFileSync } from 'node:fs';
import { holdOut, RowStream, type Batch, type StreamOptions } from '../../runtime/text/batching.js';
import { readData, type Sample } from '../../runtime/text/data.js';
import { mixOrder } from '../../runtime/text/mix.js';
import { packFirstFit } from '../../runtime/text/packing.js';
import { caught, draws, linesOf } from './shipped.js';

const SEQ_LEN = 16;
const OPTIONS: StreamOptions = { seqLen: SEQ_LEN, seed: 7, shuffle: true, pack: true };

/** Samples of random lengths; the ids say which sample and place they are, some labels are ignored. */
function makeSamples(count: number, seed: number): Sample[] {
  const draw = draws(seed);
  return Array.from({ length: count }, (_, line) => {
    const length = 2 + draw(SEQ_LEN - 1);
    const ids = Int32Array.from({ length }, (_, i) => line * 100 + i);
    const labels = ids.map((id, i) => (i > 1 && draw(3) === 0 ? -100 : id));
    return { ids, labels, line };
  });
}

const same = (a: Batch, b: Batch): void => {
  for (const key of ['ids', 'positions', 'attendFrom', 'labels'] as const) assert.equal(a[key], b[key], key);
  assert.equal([a.counted, a.tokens, a.rows], [b.counted, b.tokens, b.rows]);
};

/** Checks every invariant of a batch by reading it back; gives the samples of each row. */
function checkBatch(batch: Batch, samples: readonly Sample[]): number[][] {
  let counted = 0;
  let tokens = 0;
  const rows: number[][] = [];
  for (let r = 0; r < batch.rows; r++) {
    const row: number[] = [];
    let t = 0;
    while (t < batch.seqLen) {
      const base = r * batch.seqLen;
      const number = Math.floor(batch.ids[base + t]! / 100);
      const isPadding = batch.attendFrom[base + t] === t && batch.attendFrom[base + t + 1] !== t;
      if (isPadding || t + 1 === batch.seqLen) {
        for (; t < batch.seqLen; t++) {
          assert.equal(
            [
              batch.ids[base + t],
              batch.positions[base + t],
              batch.attendFrom[base + t],
              batch.labels[base + t],
            ],
            [0, 0, t, -100],
            'padding',
          );
        }
        break;
      }
      const sample = samples[number]!;
      row.push(number);
      const start = t;
      for (let i = 0; i < sample.ids.length; i++, t++) {
        assert.is(batch.ids[base + t], sample.ids[i]);
        assert.is(batch.positions[base + t], i);
        assert.is(batch.attendFrom[base + t], start);
        const last = i + 1 === sample.ids.length;
        assert.is(batch.labels[base + t], last ? -100 : sample.labels[i + 1]);
        if (batch.labels[base + t] !== -100) counted++;
      }
      tokens += sample.ids.length;
    }
    rows.push(row);
  }
  assert.equal([batch.counted, batch.tokens], [counted, tokens]);
  return rows;
}

test('packing keeps samples whole, apart and complete', () => {
  for (let seed = 0; seed < 30; seed++) {
    const samples = makeSamples(1 + seed * 3, seed);
    for (const pack of [true, false]) {
      const stream = new RowStream(samples, { ...OPTIONS, seed, pack });
      const rows = stream.rowsInEpoch(0);
      const seen = checkBatch(stream.next(rows), samples);
      assert.equal(
        seen.flat().sort((a, b) => a - b),
        samples.map((_, i) => i),
      );
      if (!pack) assert.ok(seen.every((row) => row.length === 1));
    }
  }
});

test('first fit takes the first row with room', () => {
  const lengthsOf = [10, 8, 6, 2, 8];
  assert.equal(packFirstFit([0, 1, 2, 3, 4], lengthsOf, 16), [[0, 2], [1, 3], [4]]);
  assert.equal(packFirstFit([4, 3, 2, 1, 0], lengthsOf, 16), [[4, 3, 2], [1], [0]]);
  assert.equal(packFirstFit([], [], 16), []);
  // Against the plain definition.
  const draw = draws(9);
  const lengths = Array.from({ length: 500 }, () => 1 + draw(SEQ_LEN));
  const order = lengths.map((_, i) => i);
  const expected: number[][] = [];
  for (const sample of order) {
    const room = (row: number[]): number => SEQ_LEN - row.reduce((sum, i) => sum + lengths[i]!, 0);
    const fitting = expected.find((row) => room(row) >= lengths[sample]!);
    if (fitting) fitting.push(sample);
    else expected.push([sample]);
  }
  assert.equal(packFirstFit(order, lengths, SEQ_LEN), expected);
});

test('one batch of eight rows is eight batches of one', () => {
  const samples = makeSamples(60, 1);
  const whole = new RowStream(samples, OPTIONS);
  const single = new RowStream(samples, OPTIONS);
  for (let step = 0; step < 20; step++) {
    const batch = whole.next(8);
    for (let r = 0; r < 8; r++) {
      const part = single.next(1);
      for (const key of ['ids', 'positions', 'attendFrom', 'labels'] as const)
        assert.equal(part[key], batch[key].slice(r * SEQ_LEN, (r + 1) * SEQ_LEN));
    }
    assert.equal(single.cursor, whole.cursor);
  }
});

test('a cursor resumes exactly, also across epochs', () => {
  const samples = makeSamples(37, 2);
  const stream = new RowStream(samples, OPTIONS);
  const cursors = [];
  const batches = [];
  for (let i = 0; i < 40; i++) {
    cursors.push(JSON.parse(JSON.stringify(stream.cursor)) as { epoch: number; row: number });
    batches.push(stream.next(3));
  }
  assert.ok(cursors[39]!.epoch > 2);
  for (let i = 0; i < 40; i += 7) {
    const resumed = new RowStream(samples, OPTIONS, cursors[i]);
    for (let k = i; k < 40; k++) same(resumed.next(3), batches[k]!);
  }
  const shorter = caught(() => new RowStream(samples.slice(0, 2), OPTIONS, { epoch: 0, row: 9 }));
  assert.is(shorter.code, 'Q4315');
});

test('the order depends on the seed and the epoch, and on nothing else', () => {
  const samples = makeSamples(50, 3);
  const first = new RowStream(samples, OPTIONS).next(20);
  same(new RowStream(samples, OPTIONS).next(20), first);
  assert.not.equal(new RowStream(samples, { ...OPTIONS, seed: 8 }).next(20).ids, first.ids);
  const stream = new RowStream(samples, OPTIONS);
  const rows = stream.rowsInEpoch(0);
  const epochs = [stream.next(rows), stream.next(rows)];
  assert.not.equal(epochs[1]!.ids, epochs[0]!.ids);
});

test('evaluation goes through an epoch once and leaves the cursor alone', () => {
  const samples = makeSamples(23, 4);
  const stream = new RowStream(samples, { ...OPTIONS, shuffle: false });
  const seen = [...stream.epochBatches(4)].flatMap((batch) => checkBatch(batch, samples)).flat();
  assert.equal(
    [...seen].sort((a, b) => a - b),
    samples.map((_, i) => i),
  );
  assert.equal(stream.cursor, { epoch: 0, row: 0 });
});

test('steps of a number of epochs', () => {
  const stream = new RowStream(makeSamples(40, 5), { ...OPTIONS, pack: false });
  assert.is(stream.stepsForEpochs(1, 8), 5);
  assert.is(stream.stepsForEpochs(3, 8), 15);
  assert.is(stream.stepsForEpochs(0.5, 8), 3);
  assert.is(stream.stepsForEpochs(1.1, 8), 6);
  assert.is(stream.stepsForEpochs(0.001, 8), 1);
});

test('holding out is by seed and number: more data changes nothing before it', () => {
  const samples = makeSamples(400, 6);
  const { train, evaluation } = holdOut(samples, 0.2, 1);
  assert.is(train.length + evaluation.length, 400);
  assert.ok(evaluation.length > 50 && evaluation.length < 110, `${evaluation.length}`);
  const fewer = holdOut(samples.slice(0, 200), 0.2, 1);
  assert.equal(
    fewer.evaluation,
    evaluation.filter((sample) => sample.line < 200),
  );
  assert.not.equal(holdOut(samples, 0.2, 2).evaluation, evaluation);
  assert.is(caught(() => holdOut(samples.slice(0, 1), 0.1, 1)).code, 'Q4315');
});

test('a mix holds each source as often as it should', () => {
  const count = (order: Uint32Array, from: number, to: number): number =>
    [...order].filter((i) => i >= from && i < to).length;
  const repeated = mixOrder([{ samples: 10, repeat: 3 }, { samples: 20 }], 1)(0);
  assert.equal([count(repeated, 0, 10), count(repeated, 10, 30)], [30, 20]);
  const weighted = mixOrder(
    [
      { samples: 10, weight: 1 },
      { samples: 50, weight: 3 },
    ],
    1,
  );
  assert.equal([count(weighted(0), 0, 10), count(weighted(0), 10, 60)], [15, 45]);
  assert.is(new Set(weighted(0).slice(15)).size, 45);
  assert.equal(weighted(3), weighted(3));
  assert.not.equal(weighted(3).slice(10, 15), weighted(4).slice(10, 15));
  assert.is(caught(() => mixOrder([{ samples: 1, weight: 1 }, { samples: 1 }], 1)).code, 'Q4318');
});

test('the golden training run: rows in file order', async () => {
  const file = new URL('../fixtures/d.train.jsonl', import.meta.url);
  const content = readFileSync(file, 'utf8');
  const { samples } = await readData(
    linesOf(content),
    { path: 'd.train.jsonl' },
    { text: null, vocabSize: 640, seqLen: 32 },
  );
  const rows = content
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as { input_ids: number[]; labels: number[] });
  assert.is(samples.length, 48);
  const stream = new RowStream(samples, { seqLen: 32, seed: 1, shuffle: false, pack: false });
  for (let step = 0; step < 12; step++) {
    const batch = stream.next(4);
    for (let r = 0; r < 4; r++) {
      const { input_ids: ids, labels } = rows[step * 4 + r]!;
      assert.equal([...batch.ids.slice(r * 32, r * 32 + 32)], ids);
      assert.equal([...batch.labels.slice(r * 32, r * 32 + 32)], [...labels.slice(1), -100]);
    }
  }
  assert.equal(stream.cursor, { epoch: 0, row: 48 });
});

test.run();
