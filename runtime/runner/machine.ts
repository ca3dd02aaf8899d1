/** How much memory and disk this machine can still give. */
import { readFileSync, statfsSync } from 'node:fs';
import { freemem, totalmem } from 'node:os';
import { dirname } from 'node:path';

const read = (path: string): string | null => {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return null;
  }
};

const bytesOf = (text: string | null): number | null => {
  const value = text === null ? NaN : Number(text.trim());
  return Number.isFinite(value) ? value : null;
};

/** `MemAvailable:  123 kB` → bytes */
export function meminfoBytes(text: string, key: string): number | null {
  const match = new RegExp(`^${key}:\\s+([0-9]+) kB`, 'm').exec(text);
  return match === null ? null : Number(match[1]) * 1024;
}

/** What a container may still take, or null without a limit. Page cache that can be dropped counts as free. */
function cgroupAvailable(): number | null {
  const limit = bytesOf(read('/sys/fs/cgroup/memory.max'));
  const current = bytesOf(read('/sys/fs/cgroup/memory.current'));
  if (limit !== null && current !== null) {
    const inactive = /^inactive_file ([0-9]+)/m.exec(read('/sys/fs/cgroup/memory.stat') ?? '');
    return limit - current + Number(inactive?.[1] ?? 0);
  }
  const oldLimit = bytesOf(read('/sys/fs/cgroup/memory/memory.limit_in_bytes'));
  const oldUsage = bytesOf(read('/sys/fs/cgroup/memory/memory.usage_in_bytes'));
  if (oldLimit === null || oldUsage === null || oldLimit > totalmem()) return null;
  const inactive = /^total_inactive_file ([0-9]+)/m.exec(read('/sys/fs/cgroup/memory/memory.stat') ?? '');
  return oldLimit - oldUsage + Number(inactive?.[1] ?? 0);
}

/** Bytes that can be taken without swapping or being killed. */
export function availableMemory(): number {
  const meminfo = read('/proc/meminfo');
  const system = (meminfo === null ? null : meminfoBytes(meminfo, 'MemAvailable')) ?? freemem();
  const group = cgroupAvailable();
  return Math.max(0, group === null ? system : Math.min(system, group));
}

/** Resident bytes of a process now and at most, or null where the system does not say. */
export function residentMemory(pid: number): { now: number; peak: number } | null {
  const status = read(`/proc/${pid}/status`);
  if (status === null) return null;
  const now = meminfoBytes(status, 'VmRSS');
  const peak = meminfoBytes(status, 'VmHWM');
  return now === null || peak === null ? null : { now, peak };
}

/** Free bytes of the disk that holds `path` or, if it is not there yet, the nearest directory above it. */
export function freeDisk(path: string): number | null {
  for (let directory = path; ; directory = dirname(directory)) {
    try {
      const { bavail, bsize } = statfsSync(directory);
      return bavail * bsize;
    } catch {
      if (dirname(directory) === directory) return null;
    }
  }
}

const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];

/** 1536 → "1.5 KiB" */
export function bytesText(bytes: number): string {
  let value = bytes;
  let unit = 0;
  while (Math.abs(value) >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${UNITS[unit]}`;
}
