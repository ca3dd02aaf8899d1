/** A line chart as inline SVG: no script, readable in light and dark. */
import { escape, numberText } from './html.js';

export interface Series {
  readonly name: string;
  /** CSS class that colours it: a, b or c. */
  readonly colour: 'a' | 'b' | 'c';
  readonly points: readonly (readonly [x: number, y: number])[];
  /** Marks instead of a line. */
  readonly marks?: boolean;
}

export interface LineChart {
  readonly title: string;
  readonly series: readonly Series[];
  readonly xName: string;
  /** Powers of ten on the y axis; `auto` when the values span more than a factor of 30. */
  readonly logarithmic?: boolean | 'auto';
  /** As wide as the page: drawn larger, so that its letters are not. */
  readonly wide?: boolean;
}

const NARROW = { width: 640, height: 220 };
const WIDE = { width: 1300, height: 300 };
const AUTO_SPAN = 30;
const LEFT = 64;
const RIGHT = 12;
const TOP = 12;
const BOTTOM = 32;
const MOST_POINTS = 600;

/** Round values that cover the range: steps of 1, 2 or 5 times a power of ten. */
export function ticks(low: number, high: number, count: number): number[] {
  const span = high - low || Math.abs(high) || 1;
  const rough = span / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough)!;
  const found: number[] = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++)
    found.push(Number((i * step).toPrecision(12)));
  return found;
}

/** Decades, with 2 and 5 between them when there are few. */
export function logTicks(low: number, high: number): number[] {
  const decades = Array.from(
    { length: Math.ceil(high) - Math.floor(low) + 1 },
    (_, i) => Math.floor(low) + i,
  );
  const inside = (value: number): boolean =>
    Math.log10(value) >= low - 1e-9 && Math.log10(value) <= high + 1e-9;
  const values = (steps: readonly number[]): number[] =>
    decades.flatMap((exponent) => steps.map((step) => Number(`${step}e${exponent}`))).filter(inside);
  const fine = values([1, 2, 5]);
  if (fine.length <= 6) return fine;
  const coarse = values([1]);
  const every = Math.ceil(coarse.length / 6);
  return coarse.filter((_, i) => i % every === 0);
}

/** Keeps the lowest and highest of each bucket, so that no spike is lost. */
export function thin(points: Series['points'], most = MOST_POINTS): Series['points'] {
  if (points.length <= most) return points;
  const size = Math.ceil(points.length / (most / 2));
  const kept: (readonly [number, number])[] = [];
  for (let i = 0; i < points.length; i += size) {
    const bucket = points.slice(i, i + size);
    const low = bucket.reduce((a, b) => (b[1] < a[1] ? b : a));
    const high = bucket.reduce((a, b) => (b[1] > a[1] ? b : a));
    kept.push(...(low === high ? [low] : low[0] < high[0] ? [low, high] : [high, low]));
  }
  return kept;
}

/** An empty text when there is nothing to draw. */
export function lineChart(chart: LineChart): string {
  const finite = chart.series.flatMap(({ points }) => points.map(([, y]) => y).filter(Number.isFinite));
  const spread = Math.min(...finite) > 0 && Math.max(...finite) / Math.min(...finite) > AUTO_SPAN;
  const logarithmic = chart.logarithmic === 'auto' ? spread : chart.logarithmic === true;
  const { width, height } = chart.wide === true ? WIDE : NARROW;
  const usable = (y: number): boolean => Number.isFinite(y) && (!logarithmic || y > 0);
  const series = chart.series.map((one) => ({
    ...one,
    points: thin(one.points.filter(([, y]) => usable(y))),
  }));
  const all = series.flatMap(({ points }) => points);
  if (all.length < 2) return '';
  const toY = (y: number): number => (logarithmic ? Math.log10(y) : y);
  const xs = all.map(([x]) => x);
  const ys = all.map(([, y]) => toY(y));
  const [x0, x1] = [Math.min(...xs), Math.max(...xs)];
  let [y0, y1] = [Math.min(...ys), Math.max(...ys)];
  if (!logarithmic && y0 > 0 && y0 < y1 / 2) y0 = 0;
  if (y0 === y1) [y0, y1] = [y0 - 0.5 * Math.abs(y0 || 1), y1 + 0.5 * Math.abs(y1 || 1)];
  const px = (x: number): number => LEFT + ((x - x0) / (x1 - x0 || 1)) * (width - LEFT - RIGHT);
  const py = (y: number): number => height - BOTTOM - ((toY(y) - y0) / (y1 - y0)) * (height - TOP - BOTTOM);
  const parts: string[] = [];
  for (const y of logarithmic ? logTicks(y0, y1) : ticks(y0, y1, 4)) {
    const at = py(y).toFixed(1);
    parts.push(`<line class="grid" x1="${LEFT}" x2="${width - RIGHT}" y1="${at}" y2="${at}"/>`);
    parts.push(`<text x="${LEFT - 8}" y="${at}" dy="0.35em" text-anchor="end">${numberText(y)}</text>`);
  }
  for (const x of ticks(x0, x1, chart.wide === true ? 12 : 6)) {
    parts.push(
      `<text x="${px(x).toFixed(1)}" y="${height - BOTTOM + 18}" text-anchor="middle">${numberText(x)}</text>`,
    );
  }
  for (const { colour, points, marks, name } of series) {
    parts.push(drawSeries(colour, name, points, marks === true, px, py));
  }
  const legend = series
    .filter(({ points }) => points.length > 0)
    .map(({ name, colour }) => `<span class="key ${colour}">${escape(name)}</span>`);
  return (
    `<figure${chart.wide === true ? ' class="wide"' : ''}><figcaption>${escape(chart.title)} ${legend.join(' ')}</figcaption>` +
    `<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="${escape(chart.title)}">${parts.join('')}` +
    `<text x="${width - RIGHT}" y="${height - 2}" text-anchor="end">${escape(chart.xName)}</text></svg></figure>`
  );
}

function drawSeries(
  colour: string,
  name: string,
  points: Series['points'],
  marks: boolean,
  px: (x: number) => number,
  py: (y: number) => number,
): string {
  const at = points.map(([x, y]) => `${px(x).toFixed(1)},${py(y).toFixed(1)}`);
  const line = `<polyline class="line ${colour}${marks ? ' thin' : ''}" points="${at.join(' ')}"/>`;
  // Dots carry the exact values as tooltips; with many points only the last one has room.
  const dotted = marks || points.length <= 60 ? points : points.slice(-1);
  const dots = dotted.map(
    ([x, y]) =>
      `<circle class="dot ${colour}" cx="${px(x).toFixed(1)}" cy="${py(y).toFixed(1)}" r="${marks ? 3.5 : 2}">` +
      `<title>${escape(name)} at ${x}: ${numberText(y)}</title></circle>`,
  );
  return line + dots.join('');
}
