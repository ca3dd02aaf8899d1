/** The worker process: gets one job over IPC, does it, sends events, ends. It owns the native addon. */
import { pathToFileURL } from 'node:url';

import { toQ4Error } from '../../errors.js';
import type { Stage } from '../../../stages/index.js';
import { errorEvent, eventText, stamp, type EventBody } from '../events/event.js';
import type { FromWorker, Job, ToWorker } from './protocol.js';
import type { EngineModule } from './device.js';

// Ctrl-C reaches the whole group; the supervisor decides what it means and tells us.
process.on('SIGINT', () => {});
process.on('SIGTERM', () => {});
process.on('SIGHUP', () => {});
// Without a supervisor nobody would see what we do. Like any kill, this leaves only committed state behind.
process.on('disconnect', () => process.kill(process.pid, 'SIGKILL'));

const send = (message: FromWorker): void => void process.send?.(message);
const emit = (event: EventBody): void => send({ type: 'event', line: eventText(stamp(event)) });

process.on('uncaughtException', (error) => {
  emit(errorEvent(toQ4Error(error)));
  end();
});

function end(): void {
  // The callback runs when the message has left this process: nothing after it is lost.
  process.send?.({ type: 'end' } satisfies FromWorker, () => process.exit(0));
}

const stop = new AbortController();

async function stagesOf(job: Job): Promise<readonly Stage[]> {
  if (job.registry === '') return (await import('../../../stages/index.js')).STAGES;
  return ((await import(pathToFileURL(job.registry).href)) as { STAGES: readonly Stage[] }).STAGES;
}

/** Tests bring an engine with their registry. */
async function enginesOf(job: Job): Promise<EngineModule> {
  if (job.registry !== '') {
    const { ENGINES } = (await import(pathToFileURL(job.registry).href)) as { ENGINES?: EngineModule };
    if (ENGINES !== undefined) return ENGINES;
  }
  return import('../../engine/engine.js');
}

async function work(job: Job): Promise<void> {
  try {
    const engines = await enginesOf(job);
    if (job.mode === 'probe') {
      emit({ ev: 'probe', probe: JSON.parse(JSON.stringify(engines.probe())) as never });
    } else if (job.mode === 'inspect') {
      const { inspectFile } = await import('./inspect.js');
      emit(await inspectFile(job.target, job.other ?? '', engines));
    } else {
      const { runPipeline } = await import('./run-pipeline.js');
      await runPipeline(job, { stages: await stagesOf(job), engines, emit, signal: stop.signal });
    }
  } catch (thrown) {
    emit(errorEvent(toQ4Error(thrown)));
  }
  end();
}

process.on('message', (message: ToWorker) => {
  if (message.type === 'job') void work(message.job);
  else if (!stop.signal.aborted) stop.abort(message.reason);
});
