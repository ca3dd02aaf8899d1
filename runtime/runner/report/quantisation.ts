/** What quantising cost: the error of every matrix as a picture (families by layers), and the table by family. */
import type { Json } from '../events/event.js';
import type { StageState } from '../events/run-state.js';
import { countText } from '../supervisor/status-text.js';
import { escape, numberText } from './html.js';

interface Row {
  readonly name: string;
  readonly elements: number;
  readonly sqnr_db: number | null;
  readonly relative_error: number;
  readonly zero_code_share: number;
  readonly saturated: number;
  readonly floor_blocks: number;
}

const isRow = (value: Json): boolean =>
  typeof value === 'object' &&
  value !== null &&
  typeof (value as Record<string, Json>)['name'] === 'string' &&
  typeof (value as Record<string, Json>)['relative_error'] === 'number';

const rowsOf = (value: Json | undefined): readonly Row[] =>
  Array.isArray(value) ? ((value as readonly Json[]).filter(isRow) as unknown as Row[]) : [];

const LABEL = 150;
const ROW = 18;
const WIDTH = 960;

interface Cell {
  readonly family: string;
  readonly layer: number | null;
  readonly row: Row;
}

function cellOf(row: Row): Cell {
  const [, layer, inLayer] = /^model\.layers\.(\d+)\.(.*?)(?:\.weight)?$/.exec(row.name) ?? [];
  return layer === undefined
    ? { family: row.name.replace(/\.weight$/, ''), layer: null, row }
    : { family: inLayer!, layer: Number(layer), row };
}

const decibels = (value: number | null): string => (value === null ? 'exact' : `${value.toFixed(2)} dB`);

/** A cell a matrix; the paler, the smaller its relative error within the range that there is. */
function picture(rows: readonly Row[]): string {
  const cells = rows.map(cellOf);
  const families = [...new Set(cells.map(({ family }) => family))];
  const layers = Math.max(0, ...cells.map(({ layer }) => (layer ?? -1) + 1), 1);
  const errors = rows.map(({ relative_error }) => relative_error);
  const [least, most] = [Math.min(...errors), Math.max(...errors)];
  const width = Math.min(40, (WIDTH - LABEL) / layers);
  const parts = families.map((family, i) => {
    const y = i * ROW + 4;
    const own = cells.filter((cell) => cell.family === family);
    const label = `<text x="${LABEL - 8}" y="${y + 12}" text-anchor="end">${escape(family)}</text>`;
    const marks = own.map(({ layer, row }) => {
      const x = LABEL + (layer ?? 0) * width;
      const share = most > least ? (row.relative_error - least) / (most - least) : 0.5;
      const title = `${row.name}: ${decibels(row.sqnr_db)}, relative error ${numberText(row.relative_error)}`;
      const size = `width="${Math.max(1, width - 2).toFixed(1)}" height="${ROW - 3}"`;
      return (
        `<rect x="${x.toFixed(1)}" y="${y}" ${size} rx="2" fill="var(--a)" ` +
        `fill-opacity="${(0.15 + 0.85 * share).toFixed(3)}"><title>${escape(title)}</title></rect>`
      );
    });
    return label + marks.join('');
  });
  const bottom = families.length * ROW + 20;
  const every = Math.max(1, Math.ceil(layers / 12));
  for (let layer = 0; layers > 1 && layer < layers; layer += every)
    parts.push(
      `<text x="${(LABEL + (layer + 0.5) * width - 1).toFixed(1)}" y="${bottom}" text-anchor="middle">${layer}</text>`,
    );
  const range = `relative error from ${numberText(least)} (pale) to ${numberText(most)}`;
  return (
    `<figure><figcaption>Error of each quantised matrix, by layer <span class="key a">${range}</span></figcaption>` +
    `<svg viewBox="0 0 ${WIDTH} ${bottom + 6}" role="img" aria-label="Relative error of each matrix">${parts.join('')}</svg></figure>`
  );
}

function table(rows: readonly Row[]): string {
  const body = rows.map((row) => {
    const numbers = [
      countText(row.elements),
      decibels(row.sqnr_db),
      numberText(row.relative_error),
      `${numberText(row.zero_code_share * 100)} %`,
      countText(row.saturated),
      countText(row.floor_blocks),
    ];
    const cells = numbers.map((text) => `<td class="n">${escape(text)}</td>`);
    return `<tr><td class="mono">${escape(row.name)}</td>${cells.join('')}</tr>`;
  });
  const heads = ['values', 'SQNR', 'relative error', 'zero codes', 'saturated', 'blocks at the floor'];
  return (
    `<div class="box"><table><tr><th>family</th>${heads.map((head) => `<th class="n">${head}</th>`).join('')}</tr>` +
    `${body.join('')}</table></div>`
  );
}

/** Nothing for stages that did not quantise. */
export function quantisationSection(stage: StageState): string {
  const found = stage.outputs['quantisation'];
  if (typeof found !== 'object' || found === null || Array.isArray(found)) return '';
  const { families, tensors } = found as Readonly<Record<string, Json>>;
  const rows = rowsOf(tensors);
  if (rows.length === 0) return '';
  const scales = stage.outputs['scales'];
  const how = typeof scales === 'string' ? ` <span class="soft">scales: ${escape(scales)}</span>` : '';
  return `<h2>Quantisation: ${escape(stage.id)}${how}</h2>${picture(rows)}${table(rowsOf(families))}`;
}
