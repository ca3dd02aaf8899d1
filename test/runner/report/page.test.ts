import { test } from 'uvu';
import * as assert from 'uvu/assert';

import type { RunEvent } from '../../../runtime/runner/events/event.js';
import { emptyState, reduce } from '../../../runtime/runner/events/run-state.js';
import { escape, numberText } from '../../../runtime/runner/report/html.js';
import { lineChart, logTicks, thin, ticks } from '../../../runtime/runner/report/line-chart.js';
import { bytesAtPeak } from '../../../runtime/runner/report/memory.js';
import { reportPage } from '../../../runtime/runner/report/page.js';
import { parityChart } from '../../../runtime/runner/report/parity-chart.js';
import { makeReport } from '../../../runtime/runner/report/report.js';

const EVIL = `<script>alert("x")</script>&'`;

function page(): string {
  const state = emptyState();
  const stages = ['train', 'gate', 'before', 'after'].map((id) => ({ id, uses: id }));
  const end = (stage: string, outputs: object) => ({
    ev: 'stage-end',
    stage,
    status: 'done',
    seconds: 1,
    outputs,
  });
  const events = [
    { ev: 'run-start', name: EVIL, file: EVIL, hash: 'f'.repeat(64), run_directory: EVIL, stages },
    {
      ev: 'device',
      kind: 'cpu',
      name: EVIL,
      instructions: EVIL,
      threads: 2,
      precision: 'fp32',
      reason: EVIL,
    },
    {
      ev: 'plan',
      peak_bytes: 300,
      peak_stage: 'train',
      free_bytes: 900,
      disk_bytes: 0,
      stages: [{ id: 'train', summary: EVIL, bytes: { [EVIL]: 100 }, transient_bytes: { activations: 200 } }],
    },
    ...[1, 2, 3].map((step) => ({
      ev: 'step',
      stage: 'train',
      step,
      steps: 3,
      loss: 5 - step,
      grad_norm: step,
      lr: 1e-3,
    })),
    { ev: 'step', stage: 'train', step: 4, steps: 4, loss: 'NaN', grad_norm: 'Infinity', lr: 1e-3 },
    { ev: 'eval', stage: 'train', step: 3, loss: 3 },
    end('gate', {
      passed: false,
      first_divergence: { layer: EVIL, op: EVIL, rel_l2: 0.5 },
      thresholds: { hidden_rel_l2: 1e-5 },
      layers: [
        { name: EVIL, rel_l2: 0.5 },
        { name: 'b', rel_l2: 'NaN' },
        { name: 'c', rel_l2: 0 },
      ],
      logits: { rel_l2: 1e-3, [EVIL]: EVIL },
    }),
    end('before', { texts: [{ prompt: EVIL, text: EVIL }] }),
    end('after', { texts: [{ prompt: EVIL, text: 'better' }] }),
    { ev: 'memory', rss_bytes: 1e6, peak_rss_bytes: 2e6, available_bytes: 1e9 },
    { ev: 'memory', rss_bytes: 2e6, peak_rss_bytes: 2e6, available_bytes: 1e9 },
    { ev: 'error', code: 'Q4601', message: EVIL, hint: EVIL, file: EVIL, line: 1, col: 2 },
    { ev: 'warning', message: EVIL },
  ];
  events.forEach((event, i) => reduce(state, { v: 1, t: 1000 * i, ...event } as unknown as RunEvent));
  return reportPage(makeReport(state, 6, '0.0.0', 20_000), state, [{ key: EVIL, value: EVIL, origin: EVIL }]);
}

const VOID = ['meta', 'line', 'rect', 'polyline', 'circle'];

/** Throws on a tag that is not closed, or closed by another. */
function checkNesting(html: string): number {
  const open: string[] = [];
  let seen = 0;
  for (const [, slash, name, rest] of html
    .replace(/<style>[\s\S]*?<\/style>/, '')
    .matchAll(/<(\/?)([a-z0-9]+)([^>]*)>/gi)) {
    seen += 1;
    if (slash === '/') assert.is(open.pop(), name);
    else if (!rest!.endsWith('/') && name !== 'meta') open.push(name!);
    else assert.ok(VOID.includes(name!), name);
  }
  assert.equal(open, []);
  return seen;
}

test('one page that stands alone: no script, nothing fetched, everything escaped', () => {
  const html = page();
  assert.not.match(html, /<script/i);
  assert.not.match(html, /\bon[a-z]+=/i);
  assert.not.match(html.replaceAll('http://www.w3.org', ''), /(?:src|href)=|url\(|@import/i);
  assert.ok(html.includes(escape(EVIL)));
  assert.ok(checkNesting(html) > 100);
  assert.not.match(html, /NaN(?:,|")|Infinity(?:,|")|undefined/);
});

test('it shows what there is: curves, parity with its bound, answers side by side, memory, origins', () => {
  const html = page();
  for (const part of [
    'Training: train',
    'Gradient norm',
    'Learning rate',
    'Parity: gate',
    'First divergence',
    'bound 1e-5',
    '<th>before</th><th>after</th>',
    'Planned peak 300 B in train',
    'Stages',
    'Configuration',
  ]) {
    assert.ok(html.includes(part), part);
  }
  assert.match(html, /<rect class="bad"/);
  assert.match(html, /<rect class="good"/);
});

test('a run that ended at once has a page too', () => {
  const state = emptyState();
  assert.ok(checkNesting(reportPage(makeReport(state, 4, '0.0.0', 0), state, [])) > 10);
});

test('ticks are round and cover the range', () => {
  assert.equal(ticks(0, 10, 5), [0, 2, 4, 6, 8, 10]);
  assert.equal(ticks(0.1, 0.35, 4), [0.1, 0.2, 0.3]);
  assert.ok(ticks(3, 3, 4).length > 0);
});

test('ticks of a logarithmic axis are decades, or 1, 2, 5 when there are few', () => {
  assert.equal(logTicks(-3, 1), [0.001, 0.01, 0.1, 1, 10]);
  assert.equal(logTicks(-0.5, 0.5), [0.5, 1, 2]);
  assert.ok(logTicks(-30, 30).length <= 7);
});

test('thinning keeps spikes', () => {
  const points = Array.from({ length: 100_000 }, (_, i) => [i, i === 54_321 ? 99 : i % 2] as const);
  const kept = thin(points);
  assert.ok(kept.length <= 600);
  assert.ok(kept.some(([, y]) => y === 99));
  assert.equal(
    kept.map(([x]) => x),
    kept.map(([x]) => x).sort((a, b) => a - b),
  );
});

test('charts of nothing, of one value, of equal values', () => {
  const chart = (points: (readonly [number, number])[]) =>
    lineChart({ title: 't', xName: 'x', series: [{ name: 's', colour: 'a', points }] });
  assert.is(chart([]), '');
  assert.is(chart([[1, 1]]), '');
  assert.not.match(
    chart([
      [1, 2],
      [2, 2],
    ]),
    /NaN/,
  );
  assert.not.match(
    chart([
      [1, 0],
      [2, 0],
    ]),
    /NaN/,
  );
  assert.is(parityChart([], 1), '');
  assert.not.match(parityChart([{ name: 'a', rel_l2: 0 }], null), /NaN|Infinity/);
});

test('the planned peak: what stages before left, and all of the peak stage', () => {
  const stages = [
    { id: 'a', summary: '', bytes: { weights: 5 }, transient: { io: 100 } },
    { id: 'b', summary: '', bytes: { masters: 7 }, transient: { activations: 9 } },
    { id: 'c', summary: '', bytes: { cache: 1 }, transient: {} },
  ];
  assert.equal(
    [...bytesAtPeak(stages, 'b')],
    [
      ['activations', 9],
      ['masters', 7],
      ['weights', 5],
    ],
  );
});

test('numbers keep the digits that matter', () => {
  assert.equal([0, 1.23456, 0.0000123, 1.5e9, 1e-5, NaN].map(numberText), [
    '0',
    '1.235',
    '1.23e-5',
    '1.5e9',
    '1e-5',
    'NaN',
  ]);
});

test.run();
