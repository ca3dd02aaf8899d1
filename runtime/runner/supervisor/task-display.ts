/** The live display of a terminal: a task a stage, redrawn at most four times a second. The only file that knows listr2. */
import { Listr, ListrLogger, ProcessOutput, type ListrTask } from 'listr2';

import type { RunEvent } from '../events/event.js';
import { emptyState, type RunState, type StageState } from '../events/run-state.js';
import type { Terminal } from '../terminal.js';
import type { Display } from './display.js';
import { deviceText, endLines, planText, resultText, runningLines } from './status-text.js';

const REDRAW_MS = 250;

interface Gate {
  readonly promise: Promise<void>;
  open(): void;
  /** Marks the task, and ends the list. */
  fail(reason: string): void;
}

function gate(): Gate {
  let open!: () => void;
  let fail!: (reason: string) => void;
  const promise = new Promise<void>((resolve, reject) => {
    open = resolve;
    fail = (reason) => reject(new Error(reason));
  });
  // The list may have ended before anybody waits for this one.
  promise.catch(() => {});
  return { promise, open, fail };
}

interface Row {
  readonly gate: Gate;
  task: { title: string | undefined; output: string } | null;
  /** A stage may be over before the list has come to its task. */
  title: string | null;
  output: string | null;
}

const PREPARE = '';

export class TaskDisplay implements Display {
  private readonly rows = new Map<string, Row>();
  private readonly notes: string[] = [];
  private list: Promise<unknown> | null = null;
  private timer: NodeJS.Timeout | null = null;
  private state: RunState = emptyState();

  constructor(private readonly terminal: Terminal) {}

  event(event: RunEvent, state: RunState): void {
    this.state = state;
    if (event.ev === 'run-start') this.begin(state);
    if (event.ev === 'plan') {
      this.retitle(
        PREPARE,
        `ready: ${[deviceText(state), planText(state)].filter((part) => part !== '').join('; ')}`,
      );
      this.rows.get(PREPARE)?.gate.open();
    }
    if (event.ev === 'warning' || event.ev === 'note') this.notes.push(String(event['message']));
    if (event.ev !== 'stage-end') return;
    const stage = state.stages.find(({ id }) => id === event['stage']);
    const row = stage && this.rows.get(stage.id);
    if (stage === undefined || row === undefined) return;
    const rest = endLines(stage, this.terminal.columns);
    if (rest.length > 0) {
      row.output = rest.join('\n');
      if (row.task !== null) row.task.output = row.output;
    }
    const title = `${stage.id}: ${resultText(stage)}`;
    if (stage.status === 'done') {
      this.retitle(stage.id, title);
      row.gate.open();
    } else row.gate.fail(`${stage.id}: ${stage.status} after ${resultText(stage)}`);
  }

  note(text: string): void {
    this.notes.push(text);
    this.redraw();
  }

  async end(): Promise<void> {
    if (this.timer !== null) clearInterval(this.timer);
    for (const { gate: row } of this.rows.values()) row.fail('not run');
    await this.list?.catch(() => {});
    for (const note of this.notes) this.terminal.err(`${note}\n`);
  }

  private begin(state: RunState): void {
    const names = [PREPARE, ...state.stages.map(({ id }) => id)];
    const tasks = names.map((id): ListrTask => {
      const row: Row = { gate: gate(), task: null, title: null, output: null };
      this.rows.set(id, row);
      return {
        title: id === PREPARE ? 'check and plan' : id,
        task: (_, task) => {
          row.task = task;
          if (row.title !== null) task.title = row.title;
          if (row.output !== null) task.output = row.output;
          return row.gate.promise;
        },
        rendererOptions: { persistentOutput: true, outputBar: true },
      };
    });
    const output = new ProcessOutput(process.stderr, process.stderr);
    const list = new Listr(tasks, {
      // Its own handler would end the process before a checkpoint is saved.
      registerSignalListeners: false,
      exitOnError: true,
      renderer: 'default',
      rendererOptions: {
        logger: new ListrLogger({ processOutput: output }),
        collapseErrors: false,
        collapseSubtasks: false,
        showErrorMessage: true,
      },
    });
    this.list = list.run();
    this.list.catch(() => {});
    this.timer = setInterval(() => this.redraw(), REDRAW_MS);
  }

  private linesOf(stage: StageState): string[] {
    return runningLines(stage, this.terminal.columns, Date.now());
  }

  private redraw(): void {
    const running = this.state.stages.find(({ status }) => status === 'running');
    const row = this.rows.get(running?.id ?? PREPARE);
    if (row === undefined || row.task === null) return;
    const lines = [...(running === undefined ? [] : this.linesOf(running)), ...this.notes.slice(-2)];
    if (lines.length > 0) row.task.output = lines.join('\n');
  }

  private retitle(id: string, title: string): void {
    const row = this.rows.get(id);
    if (row === undefined) return;
    row.title = title;
    if (row.task !== null) row.task.title = title;
  }
}
