/** runtime.device and runtime.precision → an engine. Never falls back silently: `auto` says what it took and why. */
import { Q4Error } from '../../errors.js';
import type { Engine, EngineOptions, Probe } from '../../engine/engine.js';
import type { RuntimeSettings } from '../config/pipeline.js';
import type { EventBody } from '../events/event.js';

/** The typed door to native code; tests put their own in its place. */
export interface EngineModule {
  openEngine(options: EngineOptions): Engine;
  probe(): Probe;
}

export interface OpenDevice {
  readonly engine: Engine;
  readonly precision: 'fp32' | 'bf16';
  readonly event: EventBody;
}

function choose(device: string, probe: () => Probe): { options: EngineOptions; reason: string } {
  if (device === 'cpu') return { options: { device: 'cpu' }, reason: 'runtime.device: cpu' };
  const { cudaBuilt, cudaDevices, cudaReason } = probe();
  if (device === 'auto') {
    const [first] = cudaDevices;
    if (first !== undefined)
      return { options: { device: 'cuda', index: first.index }, reason: 'auto: a CUDA device is usable' };
    return { options: { device: 'cpu' }, reason: `auto: no CUDA (${cudaReason})` };
  }
  const index = Number(device.split(':')[1] ?? 0);
  if (cudaDevices.some((candidate) => candidate.index === index)) {
    return { options: { device: 'cuda', index }, reason: `runtime.device: ${device}` };
  }
  const found =
    cudaDevices.length === 0 ? cudaReason : `there are ${cudaDevices.length} CUDA devices, numbered from 0`;
  throw new Q4Error('Q4402', `runtime.device is ${device}, but ${found}`, {
    at: ['runtime', 'device'],
    hint: cudaBuilt
      ? 'set runtime.device to cpu or auto'
      : 'set runtime.device to cpu or auto, or build with CUDA (q4run doctor)',
  });
}

export function openDevice(runtime: RuntimeSettings, engines: EngineModule): OpenDevice {
  const { options, reason } = choose(runtime.device, () => engines.probe());
  if (runtime.unified_memory === 'require' && options.device === 'cpu') {
    throw new Q4Error('Q4402', 'runtime.unified_memory is required, but the device is the CPU', {
      at: ['runtime', 'unified_memory'],
      hint: 'set it to prefer or disabled',
    });
  }
  const engine = engines.openEngine({ ...options, threads: runtime.threads });
  const precision =
    runtime.precision === 'auto' ? (options.device === 'cuda' ? 'bf16' : 'fp32') : runtime.precision;
  const { kind, name, instructions, index, threads, totalBytes, freeBytes } = engine.device;
  const event: EventBody = {
    ev: 'device',
    ...{ kind, name, instructions, index, threads, precision, reason },
    total_bytes: totalBytes,
    free_bytes: freeBytes,
  };
  return { engine, precision, event };
}
