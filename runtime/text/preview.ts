/**
 * Data as the model will see it, read back from the very arrays that a training step takes: which token stands where,
 * what it sees, what it must say next.
 */
import type { Batch } from './batching.js';
import { IGNORED, type DataReport } from './data.js';
import type { Tokenizer } from './tokenizer.js';

export interface PreviewToken {
  readonly id: number;
  /** The token alone; parts of characters are U+FFFD. Empty without a tokenizer. */
  readonly text: string;
  readonly position: number;
  /** Whether the model is trained to say this token. */
  readonly trained: boolean;
  /** The label, where it is another token than the one that stands here; otherwise null. */
  readonly otherLabel: number | null;
}

export interface PreviewRow {
  /** Samples packed into the row, in order. */
  readonly samples: readonly (readonly PreviewToken[])[];
  readonly paddingTokens: number;
}

/** Takes a batch apart again. */
export function previewBatch(batch: Batch, tokenizer: Tokenizer | null): PreviewRow[] {
  return Array.from({ length: batch.rows }, (_, row) => {
    const samples: PreviewToken[][] = [];
    let padding = 0;
    for (let t = 0; t < batch.seqLen; t++) {
      const at = row * batch.seqLen + t;
      const from = batch.attendFrom[at]!;
      // Padding sees only itself; so does the first token of a sample, which however is followed by its second.
      const alone = from === t && (t + 1 === batch.seqLen || batch.attendFrom[at + 1] !== t);
      if (alone) {
        padding++;
        continue;
      }
      if (from === t) samples.push([]);
      const label = from === t ? IGNORED : batch.labels[at - 1]!;
      const id = batch.ids[at]!;
      samples[samples.length - 1]!.push({
        id,
        text: tokenizer?.tokenText(id) ?? '',
        position: batch.positions[at]!,
        trained: label !== IGNORED,
        otherLabel: label !== IGNORED && label !== id ? label : null,
      });
    }
    return { samples, paddingTokens: padding };
  });
}

const OPEN = '⟦';
const CLOSE = '⟧';
export const PREVIEW_LEGEND = `${OPEN}…${CLOSE} is what the model is trained to say; the rest it only reads.`;

/** Rows as text for people: trained runs in brackets, line ends shown. */
export function renderPreview(rows: readonly PreviewRow[], tokenizer: Tokenizer | null): string {
  const lines: string[] = [PREVIEW_LEGEND];
  rows.forEach((row, r) => {
    const tokens = row.samples.reduce((sum, sample) => sum + sample.length, 0);
    const count = row.samples.length === 1 ? '1 sample' : `${row.samples.length} samples`;
    lines.push('', `row ${r + 1}: ${count}, ${tokens} tokens, ${row.paddingTokens} padding`);
    for (const sample of row.samples) lines.push(renderSample(sample, tokenizer).replace(/^/gm, '  '));
  });
  return lines.join('\n') + '\n';
}

function renderSample(sample: readonly PreviewToken[], tokenizer: Tokenizer | null): string {
  let out = '';
  for (let i = 0; i < sample.length;) {
    const { trained } = sample[i]!;
    let end = i;
    while (end < sample.length && sample[end]!.trained === trained) end++;
    const run = sample.slice(i, end);
    // A run is decoded as a whole, so that characters made of several tokens are whole.
    const text = tokenizer
      ? tokenizer.decode(run.map((token) => token.id))
      : run.map((token) => token.id).join(' ');
    out += trained ? `${OPEN}${text}${CLOSE}` : tokenizer ? text : ` ${text} `;
    i = end;
  }
  const others = sample.filter((token) => token.otherLabel !== null).length;
  const note = others === 0 ? '' : `\n(${others} labels are another token than the one that stands there)`;
  return out.trim().replaceAll('\n', '↵\n') + note;
}

const count = (n: number): string => n.toLocaleString('en-US');
const share = (part: number, whole: number): string => `${((100 * part) / Math.max(1, whole)).toFixed(1)} %`;

/** One line on a data set. */
export function renderReport(report: DataReport): string {
  const { samples, tokens, trainedTokens, truncatedSamples, truncatedTokens } = report;
  const cut =
    truncatedSamples === 0
      ? 'none cut'
      : `${count(truncatedSamples)} cut (${count(truncatedTokens)} tokens lost)`;
  return (
    `${report.path}: ${count(samples)} samples (${report.format}), ${count(tokens)} tokens, ` +
    `${share(trainedTokens, tokens)} trained, longest ${count(report.longestTokens)}, ${cut}`
  );
}
