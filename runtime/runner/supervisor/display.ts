/** What people see while a run goes on: a function of the events, to stderr. */
import type { RunEvent } from '../events/event.js';
import type { RunState, StageState } from '../events/run-state.js';
import type { Terminal } from '../terminal.js';
import { deviceText, lossText, planText, resultText, stepText } from './status-text.js';

export interface Display {
  /** After the event went into the state. */
  event(event: RunEvent, state: RunState): void;
  /** A line of its own, at once. */
  note(text: string): void;
  /** No more events; resolves when the screen is at rest. */
  end(state: RunState): Promise<void>;
}

export const silentDisplay: Display = { event: () => {}, note: () => {}, end: () => Promise.resolve() };

const PLAIN_INTERVAL_MS = 2000;
const PROGRESS_INTERVAL_MS = 5000;

/** One line an event that matters: for logs and pipes. */
export class PlainDisplay implements Display {
  private lastLine = 0;
  private lastProgress = 0;
  private lastCheckpoint = '';

  constructor(
    private readonly terminal: Terminal,
    private readonly verbose: boolean,
  ) {}

  event(event: RunEvent, state: RunState): void {
    const stage = state.stages.find(({ id }) => id === event['stage']);
    switch (event.ev) {
      case 'device':
        return this.line(`device: ${deviceText(state)}; ${String(event['reason'])}`);
      case 'plan':
        return this.line(['plan', planText(state)].filter((part) => part !== '').join(': '));
      case 'warning':
        return this.line(`warning: ${String(event['message'])}`);
      case 'note':
        return this.line(String(event['message']));
      case 'log':
        return this.verbose ? this.line(String(event['text'])) : undefined;
      default:
        if (stage !== undefined) this.stageEvent(stage, event);
    }
  }

  note(text: string): void {
    this.line(text);
  }

  end(): Promise<void> {
    return Promise.resolve();
  }

  private stageEvent(stage: StageState, event: RunEvent): void {
    const say = (text: string): void => this.line(`[${stage.id}] ${text}`);
    switch (event.ev) {
      case 'stage-start':
        return say(`start (${stage.uses})`);
      case 'stage-end':
        return say(`${stage.status}: ${resultText(stage)}`);
      case 'step': {
        const last = event['step'] === stage.totalSteps;
        return this.due(PLAIN_INTERVAL_MS, event.t) || last || this.verbose
          ? say(stepText(stage, event.t))
          : undefined;
      }
      case 'eval':
        return say(`eval at step ${String(event['step'])}: loss ${lossText(Number(event['loss']))}`);
      case 'checkpoint': {
        // The stage and the runner may both tell of one checkpoint.
        const { path } = stage.lastCheckpoint!;
        if (path === this.lastCheckpoint) return;
        this.lastCheckpoint = path;
        return say(`checkpoint at step ${String(event['step'])}`);
      }
      case 'progress': {
        const { done, total, label } = stage.progress!;
        // What is over in a moment needs no line.
        const since = Math.max(this.lastProgress, stage.startedAt ?? 0);
        if (event.t - since < PROGRESS_INTERVAL_MS) return;
        this.lastProgress = event.t;
        return say(`${Math.round((100 * done) / total)} % ${label}`.trimEnd());
      }
      case 'resume':
        return say(`continues from step ${String(event['step'])}`);
      case 'answer':
        return say(`${JSON.stringify(event['prompt'])} → ${JSON.stringify(event['text'])}`);
      default:
    }
  }

  private due(interval: number, now: number): boolean {
    if (now - this.lastLine < interval) return false;
    this.lastLine = now;
    return true;
  }

  private line(text: string): void {
    this.terminal.err(`${text}\n`);
  }
}
