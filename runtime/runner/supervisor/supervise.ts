/** One worker from start to end, whatever happens to it: every way to end becomes an exit code and an error. */
import { Q4Error } from '../../errors.js';
import type { MapNode } from '../config/tree.js';
import { errorEvent, eventText, stamp, type EventBody, type RunEvent } from '../events/event.js';
import type { Job } from '../worker/protocol.js';
import { placed } from './placed-errors.js';
import { watch } from './stopping.js';
import { startWorker, type WorkerEnd } from './worker-process.js';

export interface SuperviseOptions {
  readonly job: Job;
  /** To turn the paths of errors into places. */
  readonly tree: MapNode | null;
  readonly reserveBytes: number;
  /** Every event, placed, with its line for events.jsonl. */
  readonly onEvent: (event: RunEvent, line: string) => void;
  readonly onStart?: (workerPid: number) => void;
  readonly note: (text: string) => void;
  /** What to say about the last checkpoint when the worker is gone. */
  readonly lastCheckpoint?: () => string | null;
}

/** The exit code: that of the first error, 0 without one. */
export async function supervise(options: SuperviseOptions): Promise<number> {
  let exit: number | null = null;
  const emit = (body: EventBody): void => {
    const event = stamp(body);
    options.onEvent(event, eventText(event));
  };
  const worker = startWorker(options.job, {
    onEvent: (event, line) => {
      if (event.ev !== 'error') return options.onEvent(event, line);
      exit ??= Number(event['exit']);
      const whole = placed(event, options.tree);
      options.onEvent(whole, eventText(whole));
    },
    onOutput: (text) => emit({ ev: 'log', text }),
  });
  options.onStart?.(worker.pid);
  const stopper = watch(worker, { reserveBytes: options.reserveBytes, emit, note: options.note });
  const end = await worker.finished;
  stopper.release();
  if (!end.ended) {
    const error = lostWorker(end, stopper.reason, stopper.killed, options.lastCheckpoint?.() ?? null);
    emit(errorEvent(error));
    // A second Ctrl-C counts as the interruption it is, even if the stage complained before.
    exit = stopper.killed ? error.exit : (exit ?? error.exit);
  }
  return exit ?? 0;
}

function lostWorker(
  end: WorkerEnd,
  reason: string | null,
  killed: boolean,
  checkpoint: string | null,
): Q4Error {
  const kept = checkpoint === null ? 'no checkpoint was saved yet' : `the last checkpoint is ${checkpoint}`;
  if (killed && reason === 'memory') {
    return new Q4Error('Q4703', `the memory guard stopped the run before it could save: ${kept}`, {
      hint: 'free memory or make the run smaller; the same command continues',
    });
  }
  if (killed) {
    const code = reason === 'terminate' ? 'Q4705' : 'Q4704';
    return new Q4Error(code, `stopped at once: ${kept}`, { hint: 'the same command continues' });
  }
  const how = end.signal === null ? `with exit code ${end.exitCode}` : `by ${end.signal}`;
  const said = end.output === '' ? '' : `; it said: ${end.output.split('\n').slice(-3).join(' / ')}`;
  const hint =
    end.signal === 'SIGKILL'
      ? 'the system may have been out of memory (see dmesg); the same command continues'
      : 'the same command continues; please report it with events.jsonl';
  return new Q4Error('Q4702', `the worker was ended ${how}: ${kept}${said}`, { hint });
}
