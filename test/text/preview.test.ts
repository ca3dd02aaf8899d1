import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { RowStream } from '../../runtime/text/batching.js';
import { readData } from '../../runtime/text/data.js';
import { previewBatch, renderPreview, renderReport } from '../../runtime/text/preview.js';
import { linesOf, shippedText } from './shipped.js';

const text = shippedText();
const options = { text, vocabSize: 3072, seqLen: 32 };
const stream = { seqLen: 32, seed: 1, shuffle: false, pack: true };

test('shows rows as the model sees them, read back from the batch', async () => {
  const content = '{"prompt": "Hi", "completion": "你好！"}\n{"prompt": "a", "completion": "👍🏽"}\n';
  const { samples, report } = await readData(linesOf(content), { path: 'd.jsonl' }, options);
  const rows = previewBatch(new RowStream(samples, stream).next(2), text.tokenizer);
  const tokens = rows.flatMap((row) => row.samples.flat());
  assert.equal(
    rows.flatMap((row) => row.samples.map((sample) => sample.map((token) => token.id))),
    samples
      .map((sample) => [...sample.ids])
      .concat(samples.map((sample) => [...sample.ids]))
      .slice(0, rows.flatMap((r) => r.samples).length),
  );
  assert.is(tokens.filter((token) => token.trained).length % report.trainedTokens, 0);
  const shown = renderPreview(rows.slice(0, 1), text.tokenizer);
  assert.ok(
    shown.includes('  <|im_start|>assistant↵\n  ⟦你好！<|im_end|>⟧\n') ||
      shown.includes('⟦你好！<|im_end|>⟧'),
    shown,
  );
  assert.not.match(shown, /\ufffd/);
  assert.match(renderReport(report), /^d\.jsonl: 2 samples \(prompt\), .* trained, .* none cut$/);
});

test('shows ids without a tokenizer, and labels that are other tokens', async () => {
  const content =
    '{"input_ids": [5, 6, 7], "labels": [-100, 9, 7]}\n{"input_ids": [8, 9], "labels": [8, -100]}';
  const { samples } = await readData(
    linesOf(content.split('\n')[0]!),
    { path: 'd.jsonl' },
    { ...options, text: null },
  );
  const rows = previewBatch(new RowStream(samples, { ...stream, pack: false }).next(1), null);
  assert.equal(
    rows[0]!.samples[0]!.map((token) => [token.id, token.trained, token.otherLabel]),
    [
      [5, false, null],
      [6, true, 9],
      [7, true, null],
    ],
  );
  assert.is(rows[0]!.paddingTokens, 29);
  const shown = renderPreview(rows, null);
  assert.match(shown, /row 1: 1 sample, 3 tokens, 29 padding/);
  assert.match(shown, /5 ⟦6 7⟧/);
  assert.match(shown, /1 labels are another token/);
});

test('a full row has no padding', async () => {
  const ids = Array.from({ length: 32 }, (_, i) => i);
  const { samples } = await readData(
    linesOf(JSON.stringify({ input_ids: ids })),
    { path: 'd.jsonl' },
    { ...options, text: null },
  );
  const [row] = previewBatch(new RowStream(samples, stream).next(1), null);
  assert.is(row!.paddingTokens, 0);
  assert.is(row!.samples[0]!.length, 32);
});

test.run();
