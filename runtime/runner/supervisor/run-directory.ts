/** Which directory a run works in: a new one, or that of an unfinished run which it continues. */
import { createHash } from 'node:crypto';
import {
  existsSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { join, resolve } from 'node:path';

import { Q4Error } from '../../errors.js';
import type { Pipeline } from '../config/pipeline.js';
import { toPlain, type Plain } from '../config/tree.js';
import { RunLock } from './run-lock.js';

const PLAN_VERSION = 1;
/** What a run makes in its directory, and `--fresh` removes; nothing else there is touched. */
const OURS = ['effective.yaml', 'plan.json', 'events.jsonl', 'checkpoints', 'report.json', 'report.html'];

export interface PlanFile {
  readonly version: number;
  readonly name: string;
  readonly hash: string;
  /** Stages that run, in order. */
  readonly selected: readonly string[];
  /** Identity of each input file: a changed one makes another run. */
  readonly inputs: Readonly<Record<string, string>>;
  /** The effective configuration. */
  readonly config: Plain;
  /** As the `plan` event says; absent until the stages were planned. */
  readonly plan?: Plain;
}

export interface RunDirectory {
  /** Absolute. */
  readonly path: string;
  readonly resumed: boolean;
  /** Nothing to do: this very run is finished. */
  readonly upToDate: boolean;
  /** Why an unfinished run is not continued. */
  readonly notes: readonly string[];
  readonly plan: PlanFile;
  readonly lock: RunLock;
}

export interface DirectoryWishes {
  readonly selected: readonly string[];
  /** --only, --from or --until was given: asked for by name, so it runs even where it has run before. */
  readonly chosen: boolean;
  readonly runDir: string | undefined;
  readonly fresh: boolean;
  readonly cwd: string;
}

const HASHED_BYTES = 16 * 1024 * 1024;

function fileIdentity(path: string): string {
  const found = statSync(path, { throwIfNoEntry: false });
  if (found === undefined) return 'missing';
  if (found.isDirectory()) {
    const names = readdirSync(path).sort();
    const parts = names.map((name) => {
      const child = join(path, name);
      return statSync(child).isFile() ? `${name} ${fileIdentity(child)}` : name;
    });
    return createHash('sha256').update(parts.join('\n')).digest('hex');
  }
  // Reading gigabytes only to name them would delay every start.
  if (found.size > HASHED_BYTES) return `${found.size} bytes, changed ${found.mtimeMs}`;
  return createHash('sha256').update(readFileSync(path)).digest('hex');
}

function inputIdentities(pipeline: Pipeline, selected: readonly string[]): Record<string, string> {
  const files = new Set<string>();
  for (const stage of pipeline.stages) {
    if (!selected.includes(stage.id)) continue;
    for (const { path, use } of stage.paths) {
      let value: unknown = stage.with;
      for (const key of path) value = (value as Record<string | number, unknown> | undefined)?.[key];
      if (use !== 'output' && typeof value === 'string' && !value.includes('${stages.')) files.add(value);
    }
  }
  return Object.fromEntries([...files].sort().map((file) => [file, fileIdentity(file)]));
}

const readJson = <T>(path: string): T | null => {
  try {
    return JSON.parse(readFileSync(path, 'utf8')) as T;
  } catch {
    return null;
  }
};

export const readPlan = (directory: string): PlanFile | null => {
  const plan = readJson<PlanFile>(join(directory, 'plan.json'));
  return plan?.version === PLAN_VERSION ? plan : null;
};

export const isFinished = (directory: string): boolean =>
  readJson<{ status?: string }>(join(directory, 'report.json'))?.status === 'done';

/** Runs of this pipeline, newest first; their names begin with the time. */
export function runsOf(runs: string, name: string, hash?: string): string[] {
  if (!existsSync(runs)) return [];
  const end =
    hash === undefined
      ? new RegExp(`-${escape(name)}-[0-9a-f]{8}$`)
      : new RegExp(`-${escape(name)}-${hash.slice(0, 8)}$`);
  return readdirSync(runs)
    .filter((entry) => end.test(entry))
    .sort()
    .reverse()
    .map((entry) => join(runs, entry));
}

const escape = (text: string): string => text.replace(/[.*+?^${}()|[\]\\]/g, '\\$&');

export const runsDirectory = (pipeline: Pipeline, cwd: string): string =>
  pipeline.runtime.runs_directory ?? resolve(cwd, 'runs');

const sameList = (a: readonly string[], b: readonly string[]): boolean => a.join('\n') === b.join('\n');

/** Why `old` cannot be continued with the present inputs, or null. */
function changedInput(old: PlanFile, now: PlanFile): string | null {
  const changed = Object.entries(now.inputs).find(([file, identity]) => old.inputs[file] !== identity);
  return changed?.[0] ?? null;
}

/** 20261123-014530 */
const timeName = (now: Date): string =>
  now.toISOString().replace(/[-:]/g, '').replace('T', '-').replace(/\..*$/, '');

function makeNew(runs: string, pipeline: Pipeline): string {
  mkdirSync(runs, { recursive: true });
  const end = `${pipeline.name}-${pipeline.hash.slice(0, 8)}`;
  const time = timeName(new Date());
  for (let n = 1; ; n++) {
    const path = join(runs, n === 1 ? `${time}-${end}` : `${time}.${n}-${end}`);
    try {
      mkdirSync(path);
      return path;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
    }
  }
}

/** What would be continued, without touching anything. */
export function findUnfinished(
  pipeline: Pipeline,
  plan: PlanFile,
  cwd: string,
): { path: string | null; notes: string[] } {
  const [newest] = runsOf(runsDirectory(pipeline, cwd), pipeline.name, pipeline.hash);
  const old = newest === undefined ? null : readPlan(newest);
  if (newest === undefined || old === null || old.hash !== plan.hash || isFinished(newest))
    return { path: null, notes: [] };
  if (!sameList(old.selected, plan.selected)) return { path: null, notes: [] };
  const changed = changedInput(old, plan);
  if (changed !== null)
    return { path: null, notes: [`not continuing ${newest}: ${changed} has changed since`] };
  return { path: newest, notes: [] };
}

export function makePlan(pipeline: Pipeline, selected: readonly string[]): PlanFile {
  const { name, hash } = pipeline;
  const inputs = inputIdentities(pipeline, selected);
  return { version: PLAN_VERSION, name, hash, selected, inputs, config: toPlain(pipeline.tree) };
}

/** Makes or finds the directory, takes its lock, writes plan.json. Throws Q4005, Q4006, Q4413. */
export async function openRunDirectory(pipeline: Pipeline, wishes: DirectoryWishes): Promise<RunDirectory> {
  const plan = makePlan(pipeline, wishes.selected);
  try {
    return wishes.runDir === undefined
      ? await openOwn(pipeline, plan, wishes)
      : await openNamed(plan, wishes);
  } catch (cause) {
    if (cause instanceof Q4Error) throw cause;
    throw new Q4Error('Q4413', `cannot make the run directory: ${(cause as Error).message}`, {
      cause,
      hint: 'choose another place with --run-dir or runtime.runs_directory',
    });
  }
}

async function openOwn(pipeline: Pipeline, plan: PlanFile, wishes: DirectoryWishes): Promise<RunDirectory> {
  const unfinished = wishes.fresh ? { path: null, notes: [] } : findUnfinished(pipeline, plan, wishes.cwd);
  const path = unfinished.path ?? makeNew(runsDirectory(pipeline, wishes.cwd), pipeline);
  const lock = await RunLock.take(path);
  begin(path, plan);
  return { path, resumed: unfinished.path !== null, upToDate: false, notes: unfinished.notes, plan, lock };
}

async function openNamed(plan: PlanFile, wishes: DirectoryWishes): Promise<RunDirectory> {
  const path = resolve(wishes.cwd, wishes.runDir!);
  mkdirSync(path, { recursive: true });
  const lock = await RunLock.take(path);
  try {
    if (wishes.fresh) for (const name of OURS) rmSync(join(path, name), { recursive: true, force: true });
    const old = readPlan(path);
    if (old !== null) {
      const changed = old.hash === plan.hash ? changedInput(old, plan) : null;
      if (old.hash !== plan.hash || changed !== null) {
        const what = changed === null ? 'other settings' : `another ${changed}`;
        throw new Q4Error('Q4005', `${path} holds a run with ${what}`, {
          hint: 'choose another directory, or start anew in it with --fresh',
        });
      }
      const covered = plan.selected.every((id) => old.selected.includes(id));
      if (isFinished(path) && covered && !wishes.chosen) {
        return { path, resumed: false, upToDate: true, notes: [], plan: old, lock };
      }
    }
    begin(path, plan);
    return { path, resumed: old !== null, upToDate: false, notes: [], plan, lock };
  } catch (error) {
    lock.release();
    throw error;
  }
}

/** From now on the run is unfinished until a new report says otherwise. */
function begin(path: string, plan: PlanFile): void {
  rmSync(join(path, 'report.json'), { force: true });
  writePlan(path, plan);
}

export function writePlan(path: string, plan: PlanFile): void {
  writeWhole(join(path, 'plan.json'), `${JSON.stringify(plan, null, 2)}\n`);
}

/** Written aside and renamed: readers see the old or the new. */
export function writeWhole(path: string, text: string): void {
  const aside = `${path}.${process.pid}.tmp`;
  writeFileSync(aside, text);
  renameSync(aside, path);
}
