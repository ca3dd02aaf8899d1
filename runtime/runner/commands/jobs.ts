/** Jobs that leave nothing behind: plan, graph, preview, inspect, doctor. */
import { Q4Errors, type Q4Error } from '../../errors.js';
import type { Pipeline, RuntimeSettings } from '../config/pipeline.js';
import type { MapNode } from '../config/tree.js';
import type { RunEvent } from '../events/event.js';
import { toError } from '../supervisor/placed-errors.js';
import { supervise } from '../supervisor/supervise.js';
import type { Job, Mode } from '../worker/protocol.js';
import type { CommandContext } from './command.js';

const NO_RUNTIME: RuntimeSettings = {
  device: 'auto',
  precision: 'auto',
  unified_memory: 'disabled',
  seed: 0,
  threads: 0,
  host_reserve_mib: 0,
  events: false,
};

export interface JobWishes {
  readonly mode: Mode;
  readonly pipeline?: Pipeline;
  readonly selected?: readonly string[];
  readonly runDirectory?: string;
  readonly only?: string;
  readonly target?: string;
  readonly other?: string;
}

export function makeJob(context: CommandContext, wishes: JobWishes): Job {
  const { pipeline } = wishes;
  return {
    mode: wishes.mode,
    name: pipeline?.name ?? '',
    runtime: pipeline?.runtime ?? NO_RUNTIME,
    stages: pipeline?.stages ?? [],
    selected: wishes.selected ?? [],
    runDirectory: wishes.runDirectory ?? context.terminal.cwd,
    profile: context.flags.profile,
    registry: context.registry ?? '',
    only: wishes.only ?? null,
    samples: context.flags.samples,
    target: wishes.target ?? '',
    other: wishes.other ?? '',
  };
}

/** The job's events; throws its errors. With `--json` the events also go to stdout. */
export async function collect(context: CommandContext, wishes: JobWishes): Promise<RunEvent[]> {
  const { terminal, flags } = context;
  const events: RunEvent[] = [];
  const errors: Q4Error[] = [];
  const tree: MapNode | null = wishes.pipeline?.tree ?? null;
  await supervise({
    job: makeJob(context, wishes),
    tree,
    reserveBytes: 0,
    onEvent: (event, line) => {
      if (flags.json) terminal.out(`${line}\n`);
      if (event.ev === 'error') errors.push(toError(event));
      else if (event.ev === 'log') terminal.err(`${String(event['text'])}\n`);
      else events.push(event);
    },
    note: (text) => terminal.err(`${text}\n`),
  });
  if (errors.length > 0) throw new Q4Errors(errors);
  return events;
}
