/** report.html: one page that stands alone. A function of the report, the curves and the configuration. */
import type { Json } from '../events/event.js';
import type { RunState, StageState } from '../events/run-state.js';
import { bytesText } from '../machine.js';
import { countText, deviceText, lossText, resultText, secondsText } from '../supervisor/status-text.js';
import { answersSection } from './answers.js';
import { escape, numberText } from './html.js';
import { lineChart } from './line-chart.js';
import { memorySection } from './memory.js';
import { parityChart, type LayerError } from './parity-chart.js';
import { quantisationSection } from './quantisation.js';
import type { Report } from './report.js';
import { STYLE } from './style.js';

export interface ConfigurationRow {
  readonly key: string;
  readonly value: string;
  readonly origin: string;
}

export function reportPage(
  report: Report,
  state: RunState,
  configuration: readonly ConfigurationRow[],
): string {
  const body = [
    head(report, state),
    errorSection(report),
    cards(report, state),
    ...state.stages.map(trainingSection),
    ...state.stages.map(paritySection),
    ...state.stages.map(quantisationSection),
    answersSection(state),
    memorySection(state),
    stageTable(state),
    configurationSection(configuration),
    `<footer>q4run ${escape(report.q4run)} · ${escape(report.run_directory)} · configuration ${escape(report.hash.slice(0, 8))}</footer>`,
  ];
  return (
    `<!doctype html>\n<html lang="en"><head><meta charset="utf-8">` +
    `<meta name="viewport" content="width=device-width, initial-scale=1"><title>${escape(report.name)} · q4run</title>` +
    `<style>${STYLE}</style></head><body><main>${body.join('\n')}</main></body></html>\n`
  );
}

function head(report: Report, state: RunState): string {
  const mood = report.exit_code === 0 ? 'good' : 'bad';
  const when = report.started.replace('T', ' ').replace(/\..*$/, ' UTC');
  const resumed = report.resumed ? ' · continued' : '';
  return (
    `<header><h1>${escape(report.name)}</h1><span class="badge ${mood}">${escape(report.status)}</span></header>` +
    `<p class="soft">${escape(when)} · ${escape(secondsText(report.seconds))}${resumed} · ${escape(deviceText(state))}</p>`
  );
}

function errorSection(report: Report): string {
  return report.errors
    .map((error) => {
      const place = [error['file'], error['line'], error['col']]
        .filter((part) => part !== undefined)
        .join(':');
      const hint = error['hint'] === undefined ? '' : `<p class="soft">${escape(error['hint'])}</p>`;
      const where = place === '' ? '' : `<p class="mono">${escape(place)}</p>`;
      return `<div class="error">${where}<b>${escape(error['code'])}</b> ${escape(error['message'])}${hint}</div>`;
    })
    .concat(report.warnings.map((warning) => `<p class="soft">warning: ${escape(warning)}</p>`))
    .join('');
}

const isNumber = (value: unknown): value is number => typeof value === 'number';
const lossesOf = (stage: StageState): number[] =>
  (Array.isArray(stage.outputs['losses'])
    ? stage.outputs['losses']
    : [...stage.steps.values()].map(({ loss }) => loss)
  ).filter(isNumber);

function cards(report: Report, state: RunState): string {
  const found: [string, string][] = [];
  for (const stage of state.stages) {
    const losses = lossesOf(stage);
    if (losses.length > 0)
      found.push([`loss, ${stage.id}`, `${lossText(losses[0]!)} → ${lossText(losses.at(-1)!)}`]);
    const rate = stage.outputs['tokens_per_second'];
    if (isNumber(rate)) found.push([`tokens per second, ${stage.id}`, countText(rate)]);
    const changed = stage.outputs['changed_codes_share'];
    if (isNumber(changed)) found.push([`NVFP4 codes changed, ${stage.id}`, `${numberText(changed * 100)} %`]);
    const passed = stage.outputs['passed'];
    if (typeof passed === 'boolean') found.push([`parity, ${stage.id}`, passed ? 'passed' : 'refused']);
  }
  if (state.peakRss > 0) found.push(['peak memory of the process', bytesText(state.peakRss)]);
  found.push(['time', secondsText(report.seconds)]);
  return `<div class="cards">${found.map(([name, value]) => `<div class="card"><b>${escape(value)}</b><span>${escape(name)}</span></div>`).join('')}</div>`;
}

function trainingSection(stage: StageState): string {
  const steps = [...stage.steps.values()].sort((a, b) => a.step - b.step);
  if (steps.length < 2) return '';
  const of = (pick: (step: (typeof steps)[number]) => number | null): [number, number][] =>
    steps.flatMap((step): [number, number][] => {
      const value = pick(step);
      return value === null ? [] : [[step.step, value]];
    });
  const evals = [...stage.evals.values()]
    .sort((a, b) => a.step - b.step)
    .flatMap(({ step, loss }): [number, number][] => (loss === null ? [] : [[step, loss]]));
  const charts = [
    lineChart({
      title: 'Loss',
      xName: 'step',
      wide: true,
      logarithmic: 'auto',
      series: [
        { name: 'training', colour: 'a', points: of(({ loss }) => loss) },
        { name: 'evaluation', colour: 'b', points: evals, marks: true },
      ],
    }),
    lineChart({
      title: 'Gradient norm',
      xName: 'step',
      logarithmic: true,
      series: [{ name: 'before clipping', colour: 'b', points: of(({ gradNorm }) => gradNorm) }],
    }),
    lineChart({
      title: 'Learning rate',
      xName: 'step',
      series: [{ name: 'of the schedule', colour: 'c', points: of(({ lr }) => lr) }],
    }),
  ];
  return `<h2>Training: ${escape(stage.id)}</h2><div class="charts">${charts.join('')}</div>`;
}

function layersOf(value: Json | undefined): LayerError[] {
  if (!Array.isArray(value)) return [];
  return (value as readonly Record<string, Json>[]).flatMap((layer) => {
    const error = Number(layer['rel_l2']);
    return typeof layer['name'] === 'string' ? [{ name: layer['name'], rel_l2: error }] : [];
  });
}

function paritySection(stage: StageState): string {
  const { outputs } = stage;
  if (typeof outputs['passed'] !== 'boolean') return '';
  const thresholds = (outputs['thresholds'] ?? {}) as Readonly<Record<string, Json>>;
  const bound = isNumber(thresholds['hidden_rel_l2']) ? thresholds['hidden_rel_l2'] : null;
  const divergence = outputs['first_divergence'] as Readonly<Record<string, Json>> | null | undefined;
  const word = outputs['passed']
    ? '<span class="badge good">passed</span>'
    : '<span class="badge bad">refused</span>';
  const where =
    divergence === null || divergence === undefined
      ? '<p class="soft">No layer is over its bound.</p>'
      : `<p>First divergence: <b>${escape(divergence['layer'])}</b>${typeof divergence['op'] !== 'string' ? '' : `, op ${escape(divergence['op'])}`}, relative L2 ${escape(divergence['rel_l2'])}</p>`;
  const logits = Object.entries((outputs['logits'] ?? {}) as Readonly<Record<string, Json>>);
  const rows = logits
    .map(([name, value]) => {
      const limit = thresholds[name === 'rel_l2' ? 'logits_rel_l2' : name];
      return `<tr><td>${escape(name)}</td><td class="n">${isNumber(value) ? numberText(value) : escape(value)}</td><td class="n">${isNumber(limit) ? numberText(limit) : ''}</td></tr>`;
    })
    .join('');
  const table =
    rows === ''
      ? ''
      : `<div class="box"><table><tr><th>logits</th><th class="n">found</th><th class="n">bound</th></tr>${rows}</table></div>`;
  return `<h2>Parity: ${escape(stage.id)} ${word}</h2>${where}<div class="charts">${parityChart(layersOf(outputs['layers']), bound)}${table}</div>`;
}

function stageTable(state: RunState): string {
  const rows = state.stages.map((stage) => {
    const came = stage.status === 'waiting' ? '' : resultText(stage);
    return `<tr><td><b>${escape(stage.id)}</b></td><td>${escape(stage.uses)}</td><td>${escape(stage.status)}</td><td class="n">${escape(secondsText(stage.seconds))}</td><td>${escape(came)}</td></tr>`;
  });
  return `<h2>Stages</h2><div class="box"><table><tr><th>stage</th><th>uses</th><th>status</th><th class="n">time</th><th></th></tr>${rows.join('')}</table></div>`;
}

function configurationSection(configuration: readonly ConfigurationRow[]): string {
  const rows = configuration.map(
    ({ key, value, origin }) =>
      `<tr><td class="mono">${escape(key)}</td><td class="mono">${escape(value)}</td><td class="mono soft">${escape(origin)}</td></tr>`,
  );
  return `<h2>Configuration</h2><details class="box"><summary>${configuration.length} values and where each comes from</summary><table>${rows.join('')}</table></details>`;
}
