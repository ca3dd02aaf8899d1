/** The worker as a child process; the only file that knows execa. */
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

import { execaNode } from 'execa';

import type { RunEvent } from '../events/event.js';
import type { FromWorker, Job, StopReason, ToWorker } from '../worker/protocol.js';

export interface WorkerEnd {
  /** It said that the job is over. */
  readonly ended: boolean;
  readonly signal: string | null;
  readonly exitCode: number | null;
  /** The last that it printed: native crashes say why. */
  readonly output: string;
}

export interface Worker {
  readonly pid: number;
  stop(reason: StopReason): void;
  kill(): void;
  readonly finished: Promise<WorkerEnd>;
}

export interface WorkerHandlers {
  /** `line` is the event as it came. */
  onEvent(event: RunEvent, line: string): void;
  /** What native code printed. */
  onOutput(line: string): void;
}

const OUTPUT_LINES = 20;
const HERE = fileURLToPath(import.meta.url);

export function startWorker(job: Job, handlers: WorkerHandlers): Worker {
  const main = join(dirname(dirname(HERE)), 'worker', HERE.endsWith('.ts') ? 'main.ts' : 'main.js');
  const child = execaNode(main, {
    ipc: true,
    serialization: 'json',
    stdin: 'ignore',
    stdout: 'pipe',
    stderr: 'pipe',
    buffer: false,
    reject: false,
    cleanup: true,
  });
  let ended = false;
  child.on('message', (message) => {
    const said = message as unknown as FromWorker;
    if (said.type === 'end') ended = true;
    else handlers.onEvent(JSON.parse(said.line) as RunEvent, said.line);
  });
  const output: string[] = [];
  for (const stream of [child.stdout, child.stderr]) {
    let rest = '';
    stream.setEncoding('utf8');
    stream.on('data', (text: string) => {
      const lines = (rest + text).split('\n');
      rest = lines.pop()!;
      for (const line of lines) {
        output.push(line);
        if (output.length > OUTPUT_LINES) output.shift();
        handlers.onOutput(line);
      }
    });
  }
  // A worker that is gone already does not listen; its end tells the rest.
  const say = (message: ToWorker): void => {
    if (child.connected) child.send(message as never, () => {});
  };
  say({ type: 'job', job });
  return {
    pid: child.pid ?? 0,
    stop: (reason) => say({ type: 'stop', reason }),
    kill: () => void child.kill('SIGKILL'),
    finished: child.then((result) => ({
      ended,
      signal: result.signal ?? null,
      exitCode: result.exitCode ?? null,
      output: output.join('\n'),
    })),
  };
}
