/** Reasons to stop a worker before it is done: the user's signals, and the machine running out of memory. */
import { availableMemory, bytesText, residentMemory } from '../machine.js';
import type { Worker } from './worker-process.js';
import type { EventBody } from '../events/event.js';
import type { StopReason } from '../worker/protocol.js';

/** Ctrl-C under npx arrives twice, from the terminal and from npm: within this time it is one. */
const SAME_SIGNAL_MS = 500;
const WATCH_MS = 500;
const MEMORY_EVENT_MS = 5000;
/** With less than this share of the reserve left, waiting for a checkpoint would take the machine down. */
const EMERGENCY_SHARE = 0.25;

export interface Stopper {
  /** Set once the worker was asked to stop. */
  readonly reason: StopReason | null;
  /** Set when it was not given the time to save. */
  readonly killed: boolean;
  release(): void;
}

export interface StopOptions {
  /** 0 turns the memory guard off. */
  readonly reserveBytes: number;
  readonly emit: (event: EventBody) => void;
  readonly note: (text: string) => void;
}

export function watch(worker: Worker, options: StopOptions): Stopper {
  const { reserveBytes, emit, note } = options;
  let reason: StopReason | null = null;
  let killed = false;
  let askedAt = 0;

  const kill = (): void => {
    killed = true;
    worker.kill();
  };
  const ask = (why: StopReason): void => {
    reason = why;
    askedAt = Date.now();
    worker.stop(why);
  };
  const onSignal = (why: StopReason) => (): void => {
    if (reason === null) {
      ask(why);
      emit({ ev: 'stop', reason: why });
      note('stopping: the running stage saves its state; once more stops at once');
    } else if (Date.now() - askedAt > SAME_SIGNAL_MS && !killed) {
      note('stopped at once; the last committed checkpoint stays');
      kill();
    }
  };
  const onInterrupt = onSignal('interrupt');
  const onTerminate = onSignal('terminate');
  process.on('SIGINT', onInterrupt);
  process.on('SIGTERM', onTerminate);
  process.on('SIGHUP', onTerminate);

  let lastEvent = 0;
  const timer = setInterval(() => {
    const available = availableMemory();
    const resident = residentMemory(worker.pid);
    if (resident !== null && Date.now() - lastEvent > MEMORY_EVENT_MS) {
      lastEvent = Date.now();
      emit({
        ev: 'memory',
        rss_bytes: resident.now,
        peak_rss_bytes: resident.peak,
        available_bytes: available,
      });
    }
    if (reserveBytes === 0 || available >= reserveBytes) return;
    if (reason === null) {
      ask('memory');
      emit({ ev: 'stop', reason: 'memory', available_bytes: available });
      note(`only ${bytesText(available)} of memory is left: saving a checkpoint and stopping`);
    } else if (available < reserveBytes * EMERGENCY_SHARE && !killed) kill();
  }, WATCH_MS);

  return {
    get reason() {
      return reason;
    },
    get killed() {
      return killed;
    },
    release: () => {
      clearInterval(timer);
      process.off('SIGINT', onInterrupt);
      process.off('SIGTERM', onTerminate);
      process.off('SIGHUP', onTerminate);
    },
  };
}
