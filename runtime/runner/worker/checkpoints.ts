/**
 * Checkpoints as committed directories: a directory counts once its manifest stands in it and it has its final name.
 *   checkpoints/<stage>/step-<N>/manifest.json + the files it lists (schemas/checkpoint-manifest.schema.json)
 * A kill at any moment leaves directories with other names, which the next run removes.
 */
import { mkdir, readFile, readdir, rename, rm, stat } from 'node:fs/promises';
import { join, relative, sep } from 'node:path';

import { Q4Error } from '../../errors.js';
import type { CheckpointRef, Checkpoints, Json, StageEvent } from '../../../stages/index.js';
import { fileSha256, syncPath, writeDurably } from './durable.js';
import { unwritable } from './stage-files.js';

const MANIFEST = 'manifest.json';
const MANIFEST_VERSION = 1;
const COMMITTED = /^step-([0-9]+)$/;
/** A save that did not end, a checkpoint on its way out, and one that is being replaced. */
const TEMPORARY = '.saving-';
const REMOVED = '.removed-';
const REPLACED = '.replaced-';

export interface ManifestFile {
  /** Relative, with forward slashes. */
  readonly path: string;
  readonly bytes: number;
  readonly sha256: string;
}

export interface Manifest {
  readonly version: number;
  readonly stage: string;
  readonly step: number;
  readonly meta: Json;
  /** Lower is better; null when nothing was measured. */
  readonly score: number | null;
  readonly pinned: boolean;
  readonly files: readonly ManifestFile[];
}

export interface Damage {
  readonly path: string;
  readonly problem: string;
}

async function filesBelow(directory: string): Promise<string[]> {
  const entries = await readdir(directory, { recursive: true, withFileTypes: true });
  return entries
    .filter((entry) => entry.isFile())
    .map((entry) => relative(directory, join(entry.parentPath, entry.name)).split(sep).join('/'))
    .filter((path) => path !== MANIFEST)
    .sort();
}

/** The manifest, if it is whole and every file has its size; otherwise what is wrong. */
export async function readManifest(directory: string): Promise<Manifest | string> {
  let manifest: Manifest;
  try {
    manifest = JSON.parse(await readFile(join(directory, MANIFEST), 'utf8')) as Manifest;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'ENOENT'
      ? 'it has no manifest'
      : 'its manifest cannot be read';
  }
  if (manifest.version !== MANIFEST_VERSION) return `its manifest has version ${String(manifest.version)}`;
  if (!Array.isArray(manifest.files) || !Number.isInteger(manifest.step))
    return 'its manifest is not complete';
  for (const { path, bytes } of manifest.files) {
    const size = await stat(join(directory, path)).then(
      (found) => found.size,
      () => null,
    );
    if (size === null) return `${path} is missing`;
    if (size !== bytes) return `${path} has ${size} bytes instead of ${bytes}`;
  }
  return manifest;
}

/** Also reads every file; null when all is well. */
export async function damageOf(directory: string): Promise<string | null> {
  const manifest = await readManifest(directory);
  if (typeof manifest === 'string') return manifest;
  for (const { path, sha256 } of manifest.files) {
    if ((await fileSha256(join(directory, path))) !== sha256) return `${path} does not match its checksum`;
  }
  return null;
}

export class StageCheckpoints implements Checkpoints {
  private readonly directory: string;
  private cleaned = false;
  /** Checked in this process, so that a second latest() does not read everything again. */
  private readonly healthy = new Set<string>();

  constructor(
    runDirectory: string,
    private readonly stage: string,
    private readonly emit: (event: StageEvent) => void,
  ) {
    this.directory = join(runDirectory, 'checkpoints', stage);
  }

  async latest(): Promise<CheckpointRef | null> {
    for (const { path, manifest } of await this.committed(true)) {
      if (!this.healthy.has(path)) {
        const damage = await damageOf(path);
        if (damage !== null) {
          this.report(path, damage);
          continue;
        }
        this.healthy.add(path);
      }
      return { path, step: manifest.step, meta: manifest.meta };
    }
    return null;
  }

  async list(): Promise<readonly CheckpointRef[]> {
    const found = await this.committed(false);
    return found.reverse().map(({ path, manifest }) => ({ path, step: manifest.step, meta: manifest.meta }));
  }

  async commit(
    step: number,
    meta: Json,
    write: (directory: string) => Promise<void>,
    keep: { keepLast: number; keepBest?: number; score?: number; pinned?: boolean },
  ): Promise<CheckpointRef> {
    const started = performance.now();
    await this.clean();
    const name = `step-${step}`;
    const aside = join(this.directory, `${TEMPORARY}${name}`);
    const path = join(this.directory, name);
    let bytes: number;
    try {
      await rm(aside, { recursive: true, force: true });
      await mkdir(aside, { recursive: true });
      await write(aside);
      const manifest = await this.seal(aside, step, meta, keep);
      bytes = manifest.files.reduce((sum, file) => sum + file.bytes, 0);
      await this.putInPlace(aside, path);
    } catch (cause) {
      await rm(aside, { recursive: true, force: true });
      if (cause instanceof Q4Error || (cause as NodeJS.ErrnoException).code === undefined) throw cause;
      throw unwritable(path, cause);
    }
    this.healthy.add(path);
    const seconds = (performance.now() - started) / 1000;
    this.emit({ ev: 'checkpoint', step, path, bytes, seconds, pinned: keep.pinned === true });
    await this.retain(keep.keepLast, keep.keepBest ?? 0);
    return { path, step, meta };
  }

  /** Flushes every file, then writes the manifest, last. */
  private async seal(
    directory: string,
    step: number,
    meta: Json,
    keep: { score?: number; pinned?: boolean },
  ): Promise<Manifest> {
    const files: ManifestFile[] = [];
    const parents = new Set<string>();
    for (const path of await filesBelow(directory)) {
      const full = join(directory, path);
      await syncPath(full);
      files.push({ path, bytes: (await stat(full)).size, sha256: await fileSha256(full) });
      parents.add(join(full, '..'));
    }
    for (const parent of parents) await syncPath(parent);
    const score = keep.score !== undefined && Number.isFinite(keep.score) ? keep.score : null;
    const manifest: Manifest = {
      version: MANIFEST_VERSION,
      stage: this.stage,
      step,
      meta,
      score,
      pinned: keep.pinned === true,
      files,
    };
    await writeDurably(join(directory, MANIFEST), `${JSON.stringify(manifest, null, 2)}\n`);
    return manifest;
  }

  private async putInPlace(aside: string, path: string): Promise<void> {
    const replaced = join(this.directory, `${REPLACED}${path.slice(this.directory.length + 1)}`);
    const exists = await stat(path).then(
      () => true,
      () => false,
    );
    // A directory cannot be renamed over another: for a moment neither stands, and clean() would put the old one back.
    if (exists) await rename(path, replaced);
    await rename(aside, path);
    await syncPath(this.directory);
    if (exists) await rm(replaced, { recursive: true, force: true });
  }

  /** Newest first; unreadable ones are reported when `loud`. */
  private async committed(loud: boolean): Promise<{ path: string; manifest: Manifest }[]> {
    await this.clean();
    const names = await readdir(this.directory).catch(() => [] as string[]);
    const steps = names
      .flatMap((name) => {
        const match = COMMITTED.exec(name);
        return match === null ? [] : [{ name, step: Number(match[1]) }];
      })
      .sort((a, b) => b.step - a.step);
    const found: { path: string; manifest: Manifest }[] = [];
    for (const { name } of steps) {
      const path = join(this.directory, name);
      const manifest = await readManifest(path);
      if (typeof manifest !== 'string') found.push({ path, manifest });
      else if (loud) this.report(path, manifest);
    }
    return found;
  }

  /** What a killed process left behind: unfinished saves and removals go, a replaced checkpoint without heir returns. */
  private async clean(): Promise<void> {
    if (this.cleaned) return;
    this.cleaned = true;
    const names = await readdir(this.directory).catch(() => [] as string[]);
    for (const name of names) {
      const path = join(this.directory, name);
      const heir = name.slice(REPLACED.length);
      if (name.startsWith(REPLACED) && !names.includes(heir)) await rename(path, join(this.directory, heir));
      else if ([TEMPORARY, REMOVED, REPLACED].some((prefix) => name.startsWith(prefix))) {
        await rm(path, { recursive: true, force: true });
      }
    }
  }

  private async retain(keepLast: number, keepBest: number): Promise<void> {
    const all = await this.committed(false);
    const best = all
      .filter(({ manifest }) => manifest.score !== null)
      .sort((a, b) => a.manifest.score! - b.manifest.score! || b.manifest.step - a.manifest.step)
      .slice(0, keepBest);
    const kept = new Set([...all.slice(0, Math.max(1, keepLast)), ...best].map(({ path }) => path));
    for (const { path, manifest } of all) {
      if (kept.has(path) || manifest.pinned) continue;
      // Renamed first: half a checkpoint must not look like a damaged one.
      const gone = join(this.directory, `${REMOVED}step-${manifest.step}`);
      await rename(path, gone);
      await rm(gone, { recursive: true, force: true });
    }
  }

  private report(path: string, problem: string): void {
    this.emit({ ev: 'warning', code: 'Q4414', message: `checkpoint ${path} is passed over: ${problem}` });
  }
}
