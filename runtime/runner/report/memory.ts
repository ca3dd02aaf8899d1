/** Memory planned by purpose, and what was used. */
import type { PlannedBytes, RunState } from '../events/run-state.js';
import { bytesText } from '../machine.js';
import { escape } from './html.js';
import { lineChart } from './line-chart.js';

const COLOURS = ['#3366d6', '#d9730d', '#12855f', '#8a5cd1', '#c2417c', '#0e8fa8', '#9a7b1f', '#667085'];

/** Bytes by purpose at the planned peak: what stages before left, and all of the peak stage's. */
export function bytesAtPeak(stages: readonly PlannedBytes[], peakStage: string | null): Map<string, number> {
  const sum = new Map<string, number>();
  const add = (bytes: Readonly<Record<string, number>>): void => {
    for (const [name, count] of Object.entries(bytes))
      if (count > 0) sum.set(name, (sum.get(name) ?? 0) + count);
  };
  for (const stage of stages) {
    add(stage.bytes);
    if (stage.id !== peakStage) continue;
    add(stage.transient);
    break;
  }
  return new Map([...sum].sort(([, a], [, b]) => b - a));
}

export function memorySection(state: RunState): string {
  const { plan } = state;
  const used = state.stages.flatMap(({ id, outputs }) =>
    typeof outputs['peak_memory_bytes'] === 'number'
      ? [[id, outputs['peak_memory_bytes'], outputs['planned_memory_bytes']] as const]
      : [],
  );
  const first = state.memory[0];
  const curve =
    first === undefined
      ? ''
      : lineChart({
          title: 'Resident memory of the worker, MiB',
          xName: 'seconds',
          series: [
            {
              name: 'resident',
              colour: 'a',
              points: state.memory.map(({ t, rss }) => [(t - first.t) / 1000, rss / 1024 / 1024] as const),
            },
          ],
        });
  if ((plan === null || plan.peakBytes === 0) && curve === '') return '';
  const parts: string[] = [];
  if (plan !== null && plan.peakBytes > 0) {
    const purposes = [...bytesAtPeak(plan.stages, plan.peakStage)];
    const total = purposes.reduce((all, [, bytes]) => all + bytes, 0);
    const colour = (i: number): string => COLOURS[i % COLOURS.length]!;
    const segments = purposes.map(
      ([name, bytes], i) =>
        `<i style="width:${((100 * bytes) / total).toFixed(2)}%;background:${colour(i)}" title="${escape(name)}: ${bytesText(bytes)}"></i>`,
    );
    const names = purposes.map(
      ([name, bytes], i) =>
        `<span><i style="background:${colour(i)}"></i>${escape(name)} ${bytesText(bytes)}</span>`,
    );
    const where = plan.peakStage === null ? '' : ` in ${escape(plan.peakStage)}`;
    parts.push(
      `<figure class="wide"><figcaption>Planned peak ${bytesText(plan.peakBytes)}${where}</figcaption>` +
        `<div class="bar">${segments.join('')}</div><div class="swatches">${names.join('')}</div>` +
        used
          .map(
            ([id, bytes, planned]) =>
              `<p class="soft">${escape(id)} used ${bytesText(bytes)}${typeof planned === 'number' ? ` of ${bytesText(planned)} planned` : ''}</p>`,
          )
          .join('') +
        `</figure>`,
    );
  }
  parts.push(curve);
  return `<h2>Memory</h2><div class="charts">${parts.join('')}</div>`;
}
