/** One process in a run directory. A lock whose process is gone is no lock: nobody has to remove it by hand. */
import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

import { Q4Error } from '../../errors.js';

const LOCK = '.lock';

interface ProcessMark {
  readonly pid: number;
  /** Clock ticks since boot at which it started: tells it from a later process with the same number. */
  readonly started: string | null;
}

interface LockText {
  readonly boot: string | null;
  readonly supervisor: ProcessMark;
  readonly worker: ProcessMark | null;
}

const read = (path: string): string | null => {
  try {
    return readFileSync(path, 'utf8').trim();
  } catch {
    return null;
  }
};

const bootId = (): string | null => read('/proc/sys/kernel/random/boot_id');

/** Field 22 of /proc/PID/stat, counted after the name, which may hold spaces. */
const startedAt = (pid: number): string | null =>
  read(`/proc/${pid}/stat`)
    ?.replace(/^.*\) /s, '')
    .split(' ')[19] ?? null;

const mark = (pid: number): ProcessMark => ({ pid, started: startedAt(pid) });

function isAlive({ pid, started }: ProcessMark): boolean {
  try {
    process.kill(pid, 0);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EPERM') return false;
  }
  const now = startedAt(pid);
  if (now === null || started === null) return true;
  // A zombie has ended; its parent has just not asked yet.
  return now === started && !/\) [ZX] /.test(read(`/proc/${pid}/stat`) ?? '');
}

const wait = (milliseconds: number): Promise<void> =>
  new Promise((resolve) => setTimeout(resolve, milliseconds));

const ORPHAN_PATIENCE_MS = 10_000;

/** A worker ends itself when its supervisor is gone; one that is stuck is ended here. */
async function outlive(worker: ProcessMark): Promise<void> {
  const until = Date.now() + ORPHAN_PATIENCE_MS;
  while (isAlive(worker)) {
    if (Date.now() > until) process.kill(worker.pid, 'SIGKILL');
    await wait(50);
  }
}

export class RunLock {
  private constructor(
    private readonly path: string,
    private text: LockText,
  ) {}

  /** Throws Q4006 when another living process holds it. */
  static async take(directory: string): Promise<RunLock> {
    const path = join(directory, LOCK);
    const text: LockText = { boot: bootId(), supervisor: mark(process.pid), worker: null };
    for (;;) {
      try {
        writeFileSync(path, JSON.stringify(text), { flag: 'wx' });
        return new RunLock(path, text);
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
      }
      await RunLock.removeStale(path, directory);
    }
  }

  private static async removeStale(path: string, directory: string): Promise<void> {
    const seen = read(path);
    if (seen === null) return;
    let other: LockText | null = null;
    try {
      other = JSON.parse(seen) as LockText;
    } catch {
      // Half a lock: its writer was killed, or is writing just now.
      await wait(200);
      if (read(path) !== seen) return;
    }
    if (other !== null && other.boot === bootId()) {
      if (isAlive(other.supervisor)) {
        throw new Q4Error('Q4006', `another q4run (process ${other.supervisor.pid}) works in ${directory}`, {
          hint: 'wait for it, or start another run with --fresh',
        });
      }
      if (other.worker !== null) await outlive(other.worker);
    }
    if (read(path) === seen) rmSync(path, { force: true });
  }

  /** So that the next run waits for a worker that outlives us. */
  noteWorker(pid: number): void {
    this.text = { ...this.text, worker: mark(pid) };
    writeFileSync(this.path, JSON.stringify(this.text));
  }

  release(): void {
    rmSync(this.path, { force: true });
  }
}
