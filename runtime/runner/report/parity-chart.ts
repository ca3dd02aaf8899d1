/** How far each layer is from the baseline: relative L2 error on a logarithmic scale, with the bound. */
import { escape, numberText } from './html.js';

export interface LayerError {
  readonly name: string;
  readonly rel_l2: number;
}

const WIDTH = 640;
const LABEL = 210;
const ROW = 18;
const TOP = 26;
const RIGHT = 76;
/** Smaller errors are drawn at the edge: below fp32's own rounding there is nothing to see. */
const FLOOR = 1e-9;

export function parityChart(layers: readonly LayerError[], threshold: number | null): string {
  if (layers.length === 0) return '';
  const values = layers.map(({ rel_l2 }) => rel_l2).filter((value) => Number.isFinite(value) && value > 0);
  // With nothing over zero and no bound there is still an axis.
  const marks = [...values, ...(threshold !== null && threshold > 0 ? [threshold] : [])];
  const lowest = Math.max(FLOOR, Math.min(...marks, ...(marks.length === 0 ? [FLOOR] : [])) / 10);
  const highest = Math.max(...marks, lowest * 10) * 3;
  const [e0, e1] = [Math.floor(Math.log10(lowest)), Math.ceil(Math.log10(highest))];
  const px = (value: number): number => {
    const exponent = Math.log10(Math.max(value, 10 ** e0));
    return LABEL + ((Math.min(exponent, e1) - e0) / (e1 - e0)) * (WIDTH - LABEL - RIGHT);
  };
  const height = TOP + layers.length * ROW + 8;
  const parts: string[] = [];
  const every = Math.max(1, Math.ceil((e1 - e0) / 6));
  for (let e = e0; e <= e1; e += every) {
    const x = px(10 ** e).toFixed(1);
    parts.push(`<line class="grid" x1="${x}" x2="${x}" y1="${TOP - 6}" y2="${height}"/>`);
    parts.push(`<text x="${x}" y="${TOP - 12}" text-anchor="middle">1e${e}</text>`);
  }
  layers.forEach(({ name, rel_l2 }, i) => {
    const y = TOP + i * ROW;
    const over = !Number.isFinite(rel_l2) || (threshold !== null && rel_l2 > threshold);
    const width = Math.max(2, (Number.isFinite(rel_l2) ? px(rel_l2) : px(10 ** e1)) - LABEL);
    parts.push(
      `<text x="${LABEL - 8}" y="${y + 11}" text-anchor="end">${escape(shorten(name))}<title>${escape(name)}</title></text>`,
    );
    parts.push(
      `<rect class="${over ? 'bad' : 'good'}" x="${LABEL}" y="${y + 2}" width="${width.toFixed(1)}" height="${ROW - 6}" rx="2">` +
        `<title>${escape(name)}: ${numberText(rel_l2)}</title></rect>`,
    );
    parts.push(`<text x="${(LABEL + width + 6).toFixed(1)}" y="${y + 11}">${numberText(rel_l2)}</text>`);
  });
  if (threshold !== null && threshold > 0) {
    const x = px(threshold).toFixed(1);
    parts.push(
      `<line class="bound" x1="${x}" x2="${x}" y1="${TOP - 6}" y2="${height}"><title>bound ${numberText(threshold)}</title></line>`,
    );
  }
  const bound = threshold === null ? '' : ` <span class="key bad">bound ${numberText(threshold)}</span>`;
  return (
    `<figure><figcaption>Relative L2 error, layer by layer${bound}</figcaption>` +
    `<svg viewBox="0 0 ${WIDTH} ${height}" role="img" aria-label="Error of each layer">${parts.join('')}</svg></figure>`
  );
}

const LONGEST = 32;
const shorten = (name: string): string => (name.length <= LONGEST ? name : `…${name.slice(-(LONGEST - 1))}`);
