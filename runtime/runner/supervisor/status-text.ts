/** What a stage is doing, in a line or a few. Pure: the same events give the same text. */
import { bytesText } from '../machine.js';
import { etaSeconds, type RunState, type StageState } from '../events/run-state.js';

const BLOCKS = '▁▂▃▄▅▆▇█';

/** The last values as a row of blocks, lowest to highest. */
export function sparkline(values: readonly number[], width: number): string {
  const finite = values.filter(Number.isFinite);
  if (finite.length < 2) return '';
  const size = Math.max(1, Math.ceil(finite.length / width));
  const means: number[] = [];
  for (let i = 0; i < finite.length; i += size) {
    const group = finite.slice(i, i + size);
    means.push(group.reduce((a, b) => a + b, 0) / group.length);
  }
  const low = Math.min(...means);
  const span = Math.max(...means) - low;
  return means
    .map((value) => BLOCKS[span === 0 ? 0 : Math.round(((value - low) / span) * (BLOCKS.length - 1))])
    .join('');
}

export function bar(share: number, width: number): string {
  const filled = Math.round(Math.min(1, Math.max(0, share)) * width);
  return '━'.repeat(filled) + '─'.repeat(width - filled);
}

/** 75 → "1m 15s" */
export function secondsText(seconds: number): string {
  if (seconds < 10) return `${seconds.toFixed(1)}s`;
  if (seconds < 59.5) return `${Math.round(seconds)}s`;
  const minutes = Math.floor(Math.round(seconds) / 60);
  if (minutes < 60) return `${minutes}m ${String(Math.round(seconds) % 60).padStart(2, '0')}s`;
  if (minutes < 48 * 60) return `${Math.floor(minutes / 60)}h ${String(minutes % 60).padStart(2, '0')}m`;
  return `${Math.round(minutes / 60 / 24)}d`;
}

export function countText(count: number): string {
  if (count < 1000) return count < 10 ? count.toFixed(1) : String(Math.round(count));
  if (count < 1e6) return `${(count / 1000).toFixed(1)}k`;
  return `${(count / 1e6).toFixed(1)}M`;
}

export const lossText = (loss: number | null): string =>
  loss === null
    ? '–'
    : !Number.isFinite(loss)
      ? String(loss)
      : loss < 0.01
        ? loss.toExponential(2)
        : loss.toFixed(4);

/** `step 12/120 · loss 3.1416 · 5.2k tok/s · 40s left` */
export function stepText(stage: StageState, now: number): string {
  const last = [...stage.steps.values()].at(-1);
  if (last === undefined) return '';
  const parts = [
    `step ${last.step}${stage.totalSteps === null ? '' : `/${stage.totalSteps}`}`,
    `loss ${lossText(last.loss)}`,
  ];
  if (last.tokensPerSecond !== null) parts.push(`${countText(last.tokensPerSecond)} tok/s`);
  const eta = etaSeconds(stage, now);
  if (eta !== null && last.step < (stage.totalSteps ?? 0)) parts.push(`${secondsText(eta)} left`);
  return parts.join(' · ');
}

const oneLine = (text: string): string => text.replace(/\s+/g, ' ').trim();

const cut = (text: string, width: number): string =>
  text.length <= width ? text : `${text.slice(0, width - 1)}…`;

/** Lines under a running stage on a terminal. */
export function runningLines(stage: StageState, columns: number, now: number): string[] {
  const width = Math.max(20, columns - 6);
  const lines: string[] = [];
  if (stage.steps.size > 0) {
    const last = [...stage.steps.keys()].at(-1)!;
    const share = stage.totalSteps === null ? 0 : last / stage.totalSteps;
    const losses = [...stage.steps.values()].map(({ loss }) => loss ?? NaN);
    lines.push(`${bar(share, Math.min(30, width - 10))} ${stepText(stage, now)}`);
    const curve = sparkline(losses, Math.min(60, width - 6));
    if (curve !== '') lines.push(`loss ${curve}`);
  } else if (stage.progress !== null && stage.progress.total > 0) {
    const { done, total, label } = stage.progress;
    lines.push(
      `${bar(done / total, Math.min(30, width - 10))} ${Math.round((done / total) * 100)} % ${label}`,
    );
  }
  for (const { prompt, text } of stage.answers.slice(-3)) lines.push(`${oneLine(prompt)} → ${oneLine(text)}`);
  if (stage.partial !== null)
    lines.push(`${oneLine(stage.partial.prompt)} → ${oneLine(stage.partial.text)}▌`);
  return lines.map((line) => cut(line, width));
}

/** Lines that stay under a stage that is over: its loss curve, its answers. */
export function endLines(stage: StageState, columns: number): string[] {
  const width = Math.max(20, columns - 6);
  const losses = [...stage.steps.values()].map(({ loss }) => loss ?? NaN);
  const curve = sparkline(losses, Math.min(60, width - 6));
  const answers = stage.answers.map(({ prompt, text }) => `${oneLine(prompt)} → ${oneLine(text)}`);
  return [...(curve === '' ? [] : [`loss ${curve}`]), ...answers].map((line) => cut(line, width));
}

const isNumber = (value: unknown): value is number => typeof value === 'number';

/** What came of a stage, for its title when it is over. */
export function resultText(stage: StageState): string {
  const { outputs } = stage;
  const parts: string[] = [];
  const losses = Array.isArray(outputs['losses']) ? outputs['losses'].filter(isNumber) : [];
  if (isNumber(outputs['steps'])) parts.push(`${outputs['steps']} steps`);
  if (losses.length > 0) parts.push(`loss ${lossText(losses[0]!)} → ${lossText(losses.at(-1)!)}`);
  if (isNumber(outputs['tokens_per_second'])) parts.push(`${countText(outputs['tokens_per_second'])} tok/s`);
  if (isNumber(outputs['peak_memory_bytes'])) parts.push(`peak ${bytesText(outputs['peak_memory_bytes'])}`);
  if (typeof outputs['passed'] === 'boolean') parts.push(outputs['passed'] ? 'passed' : 'refused');
  if (typeof outputs['export'] === 'string') parts.push(outputs['export'].split('/').pop()!);
  if (stage.answers.length > 0 && stage.answers.length !== 1) parts.push(`${stage.answers.length} answers`);
  parts.push(secondsText(stage.seconds));
  return parts.join(', ');
}

export function deviceText(state: RunState): string {
  const { device } = state;
  if (device === null) return '';
  const threads =
    device['kind'] === 'cpu' && isNumber(device['threads']) ? `, ${device['threads']} threads` : '';
  return `${String(device['name'])} (${String(device['instructions'])}${threads}), ${String(device['precision'])}`;
}

export function planText(state: RunState): string {
  const { plan } = state;
  if (plan === null) return '';
  return plan.peakBytes > 0 ? `needs ${bytesText(plan.peakBytes)} of ${bytesText(plan.freeBytes)}` : '';
}
