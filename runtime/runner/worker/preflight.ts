/** What can be known before the run starts: inputs that are missing, memory and disk that will not do. */
import { constants } from 'node:fs';
import { access, stat } from 'node:fs/promises';

import { Q4Error } from '../../errors.js';
import type { DeviceInfo } from '../../engine/engine.js';
import type { StagePlan } from '../../../stages/index.js';
import type { PipelineStage } from '../config/pipeline.js';
import { availableMemory, bytesText, freeDisk } from '../machine.js';
import { placeInFile, type Parameters } from './parameters.js';

const textAt = (parameters: Parameters, path: readonly (string | number)[]): string | undefined => {
  let value: unknown = parameters;
  for (const key of path) value = (value as Record<string | number, unknown> | undefined)?.[key];
  return typeof value === 'string' && !value.includes('${stages.') ? value : undefined;
};

/** Q4411 for each input that is not there or cannot be read. */
export async function missingInputs(stage: PipelineStage, parameters: Parameters): Promise<Q4Error[]> {
  const errors: Q4Error[] = [];
  for (const { path, use } of stage.paths) {
    if (use === 'output') continue;
    const file = textAt(parameters, path);
    if (file === undefined) continue;
    const at = placeInFile(stage, path);
    const key = path.join('.');
    try {
      await access(file, constants.R_OK);
      if (use === 'input-directory' && !(await stat(file)).isDirectory()) {
        errors.push(
          new Q4Error('Q4411', `${key} of stage '${stage.id}' is not a directory: ${file}`, { at }),
        );
      }
    } catch (cause) {
      const missing = (cause as NodeJS.ErrnoException).code === 'ENOENT';
      const what = missing ? 'does not exist' : 'cannot be read';
      const hint = missing
        ? 'paths are relative to the file that they are written in'
        : 'look at its permissions';
      errors.push(
        new Q4Error('Q4411', `${key} of stage '${stage.id}' ${what}: ${file}`, { at, hint, cause }),
      );
    }
  }
  return errors;
}

export interface PlannedStage {
  readonly id: string;
  readonly plan: StagePlan;
}

const sum = (bytes: Readonly<Record<string, number>> | undefined): number =>
  Object.values(bytes ?? {}).reduce((a, b) => a + b, 0);

export interface Needs {
  /** Most bytes held on the device at one time. */
  readonly peakBytes: number;
  /** The stage in which that is. */
  readonly peakStage: string | null;
  readonly diskBytes: number;
}

/** Bytes that stay add up over the stages; those of one stage only come on top while it runs. */
export function needsOf(plans: readonly PlannedStage[]): Needs {
  let held = 0;
  let peakBytes = 0;
  let peakStage: string | null = null;
  let diskBytes = 0;
  for (const { id, plan } of plans) {
    held += sum(plan.bytes);
    const here = held + sum(plan.transientBytes);
    if (here > peakBytes) [peakBytes, peakStage] = [here, id];
    diskBytes += sum(plan.diskBytes);
  }
  return { peakBytes, peakStage, diskBytes };
}

/** Bytes that the device can still give; on the CPU what the machine can spare above the guard's reserve. */
export const freeFor = (device: DeviceInfo, reserveBytes: number): number =>
  device.kind === 'cpu' ? Math.max(0, availableMemory() - reserveBytes) : device.freeBytes;

export function shortages(
  needs: Needs,
  plans: readonly PlannedStage[],
  device: DeviceInfo,
  reserveBytes: number,
  runDirectory: string,
): Q4Error[] {
  const errors: Q4Error[] = [];
  const free = freeFor(device, reserveBytes);
  if (needs.peakBytes > free) {
    const plan = plans.find(({ id }) => id === needs.peakStage)!.plan;
    const purposes = Object.entries({ ...plan.bytes, ...plan.transientBytes })
      .sort(([, a], [, b]) => b - a)
      .slice(0, 4)
      .map(([name, bytes]) => `${name} ${bytesText(bytes)}`)
      .join(', ');
    const message = `stage '${needs.peakStage}' needs ${bytesText(needs.peakBytes)}, but ${device.name} has ${bytesText(free)} free`;
    const hint = `its largest parts are ${purposes}; lower batch_size or seq_len, set recompute: block or masters: bf16`;
    errors.push(new Q4Error('Q4401', message, { hint }));
  }
  const disk = freeDisk(runDirectory);
  if (disk !== null && needs.diskBytes > disk) {
    const message = `the run writes up to ${bytesText(needs.diskBytes)}, but ${runDirectory} has ${bytesText(disk)} free`;
    errors.push(
      new Q4Error('Q4412', message, { hint: 'keep fewer checkpoints, or use --run-dir on another disk' }),
    );
  }
  return errors;
}
