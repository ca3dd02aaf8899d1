import { appendFileSync, closeSync, existsSync, fsyncSync, openSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

import { effectiveRows, effectiveYaml } from '../config/effective.js';
import { packageVersion } from '../config/package-root.js';
import { loadPipeline, type Pipeline } from '../config/pipeline.js';
import { errorsOf, formatErrors, shortPath } from '../error-text.js';
import { errorEvent, eventLine, eventText, stamp, type EventBody, type RunEvent } from '../events/event.js';
import { emptyState, reduce, type RunState } from '../events/run-state.js';
import { writeReport } from '../report/write.js';
import { PlainDisplay, silentDisplay, type Display } from '../supervisor/display.js';
import { toError } from '../supervisor/placed-errors.js';
import { openRunDirectory, writePlan, writeWhole, type RunDirectory } from '../supervisor/run-directory.js';
import { isChosen, selectStages } from '../supervisor/selection.js';
import { secondsText } from '../supervisor/status-text.js';
import { supervise } from '../supervisor/supervise.js';
import type { Command, CommandContext } from './command.js';
import { makeJob } from './jobs.js';
import { plan } from './plan.js';

const MIB = 1024 * 1024;

export const run: Command = async (context) => {
  if (context.flags.dryRun) return plan(context);
  const { flags, terminal } = context;
  try {
    const pipeline = loadPipeline(context.positionals[0]!, {
      env: terminal.env,
      sets: flags.set,
      cwd: terminal.cwd,
    });
    const selected = selectStages(pipeline, flags);
    const wishes = {
      selected,
      chosen: isChosen(flags),
      runDir: flags.runDir,
      fresh: flags.fresh,
      cwd: terminal.cwd,
    };
    const directory = await openRunDirectory(pipeline, wishes);
    try {
      return await new Run(context, pipeline, directory).start();
    } finally {
      directory.lock.release();
    }
  } catch (thrown) {
    if (flags.json) for (const error of errorsOf(thrown)) terminal.out(eventLine(errorEvent(error)));
    throw thrown;
  }
};

class Run {
  private readonly state: RunState = emptyState();
  private readonly eventsPath: string;
  private readonly version = packageVersion();
  private display: Display = silentDisplay;

  constructor(
    private readonly context: CommandContext,
    private readonly pipeline: Pipeline,
    private readonly directory: RunDirectory,
  ) {
    this.eventsPath = join(directory.path, 'events.jsonl');
  }

  async start(): Promise<number> {
    const { context, directory, pipeline } = this;
    if (directory.upToDate) return this.upToDate();
    this.display = await this.makeDisplay();
    for (const note of directory.notes) this.display.note(note);
    writeWhole(
      join(directory.path, 'effective.yaml'),
      effectiveYaml(pipeline.tree, (path) => path),
    );
    this.recall();
    const byId = new Map(pipeline.stages.map((stage) => [stage.id, stage.uses]));
    this.emit({
      ev: 'run-start',
      name: pipeline.name,
      file: pipeline.file,
      run_directory: directory.path,
      hash: pipeline.hash,
      resumed: directory.resumed,
      q4run: this.version,
      stages: directory.plan.selected.map((id) => ({ id, uses: byId.get(id)! })),
    });
    const where = shortPath(directory.path, context.terminal.cwd);
    if (!context.flags.quiet) {
      context.terminal.err(
        `${directory.resumed ? 'continuing' : 'run'} ${context.terminal.colors.bold(where)}\n`,
      );
    }
    const exit = await supervise({
      job: makeJob(context, {
        mode: 'run',
        pipeline,
        selected: directory.plan.selected,
        runDirectory: directory.path,
      }),
      tree: pipeline.tree,
      reserveBytes: pipeline.runtime.host_reserve_mib * MIB,
      onEvent: (event, line) => this.record(event, line),
      onStart: (pid) => directory.lock.noteWorker(pid),
      note: (text) => this.display.note(text),
      lastCheckpoint: () => this.lastCheckpoint(),
    });
    return this.finish(exit);
  }

  private upToDate(): number {
    const { context, directory } = this;
    const where = shortPath(directory.path, context.terminal.cwd);
    if (context.flags.json)
      context.terminal.out(eventLine({ ev: 'up-to-date', run_directory: directory.path }));
    if (!context.flags.quiet) context.terminal.err(`up to date: ${where}\n`);
    return 0;
  }

  /** The curves of a continued run begin where the run began. */
  private recall(): void {
    if (!this.directory.resumed || !existsSync(this.eventsPath)) return;
    const text = readFileSync(this.eventsPath, 'utf8');
    for (const line of text.split('\n')) {
      try {
        if (line !== '') reduce(this.state, JSON.parse(line) as RunEvent);
      } catch {
        // The last line of a killed process may be half a line.
      }
    }
    if (text !== '' && !text.endsWith('\n')) appendFileSync(this.eventsPath, '\n');
  }

  private emit(body: EventBody): void {
    const event = stamp(body);
    this.record(event, eventText(event));
  }

  private record(event: RunEvent, line: string): void {
    reduce(this.state, event);
    if (this.pipeline.runtime.events && event.ev !== 'token') appendFileSync(this.eventsPath, `${line}\n`);
    if (event.ev === 'plan') {
      const { v: _v, t: _t, ev: _ev, ...planned } = event;
      writePlan(this.directory.path, { ...this.directory.plan, plan: planned as never });
    }
    if (this.context.flags.json) this.context.terminal.out(`${line}\n`);
    this.display.event(event, this.state);
  }

  private async finish(exit: number): Promise<number> {
    const { context, directory, pipeline } = this;
    const { terminal, flags } = context;
    this.emit({ ev: 'run-end', exit_code: exit, seconds: (Date.now() - this.state.processStartedAt) / 1000 });
    if (pipeline.runtime.events) syncFile(this.eventsPath);
    const configuration = effectiveRows(pipeline.tree, (path) => shortPath(path, terminal.cwd));
    const report = writeReport(directory.path, this.state, exit, this.version, configuration);
    await this.display.end(this.state);
    for (const event of this.state.errors) {
      terminal.err(formatErrors(toError(event), terminal.colors, terminal.cwd, terminal.interactive));
    }
    if (!flags.quiet) {
      const { green, red, dim } = terminal.colors;
      const word = exit === 0 ? green('done') : red(report.status);
      const page = shortPath(join(directory.path, 'report.html'), terminal.cwd);
      terminal.err(`${word} in ${secondsText(report.seconds)}  ${dim(page)}\n`);
    }
    return exit;
  }

  private lastCheckpoint(): string | null {
    const saved = this.state.stages
      .map(({ lastCheckpoint }) => lastCheckpoint)
      .filter((found) => found !== null);
    return saved.at(-1)?.path ?? null;
  }

  private async makeDisplay(): Promise<Display> {
    const { flags, terminal } = this.context;
    if (flags.quiet) return silentDisplay;
    if (!terminal.interactive || flags.verbose || flags.json)
      return new PlainDisplay(terminal, flags.verbose);
    const { TaskDisplay } = await import('../supervisor/task-display.js');
    return new TaskDisplay(terminal);
  }
}

function syncFile(path: string): void {
  const file = openSync(path, 'r');
  try {
    fsyncSync(file);
  } finally {
    closeSync(file);
  }
}
