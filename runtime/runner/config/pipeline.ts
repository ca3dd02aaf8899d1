/** A pipeline file, read, composed, checked and complete: what `check` checks and the worker runs. */
import { createHash } from 'node:crypto';
import { basename, resolve } from 'node:path';

import { Q4Errors, type Q4Error } from '../../errors.js';
import { composePipeline } from './compose.js';
import { checkStages, roughStages, runOrder } from './order.js';
import { applyOverrides, environmentOverrides, parseSet } from './overrides.js';
import { resolveReferences } from './references.js';
import { toQ4Errors } from './schema-errors.js';
import { stageNames } from './schemas.js';
import {
  fromPlain,
  nodeAt,
  replaceAt,
  toPlain,
  type ConfigNode,
  type MapNode,
  type Path,
  type Plain,
} from './tree.js';
import { Validator, type Annotation, type Validation } from './validator.js';
import { parseValue } from './yaml-text.js';

export interface RuntimeSettings {
  readonly device: string;
  readonly precision: 'auto' | 'fp32' | 'bf16';
  readonly unified_memory: 'disabled' | 'prefer' | 'require';
  readonly seed: number;
  readonly threads: number;
  /** Absolute. */
  readonly runs_directory?: string;
  readonly host_reserve_mib: number;
  readonly events: boolean;
}

/** A path below `with`. */
export interface PathUse {
  readonly path: Path;
  readonly use: 'input' | 'input-directory' | 'output';
}

/** JSON: it travels to the worker as it is. */
export interface PipelineStage {
  readonly id: string;
  readonly uses: string;
  readonly needs: readonly string[];
  /** Place in the file's list, for error paths. */
  readonly index: number;
  /** Complete but for late references; inputs absolute, outputs as written. */
  readonly with: Readonly<Record<string, Plain>>;
  /** Texts with ${stages.…}, and the directory that a relative path in them belongs to. */
  readonly late: readonly { path: Path; text: string; base: string }[];
  readonly paths: readonly PathUse[];
  /** Values for what is not given, by runtime.precision, at maps below `with`. */
  readonly byPrecision: readonly {
    path: Path;
    values: Readonly<Record<string, Readonly<Record<string, Plain>>>>;
  }[];
}

export interface Pipeline {
  readonly name: string;
  /** Absolute. */
  readonly file: string;
  readonly files: readonly string[];
  readonly runtime: RuntimeSettings;
  /** In the order in which they run. */
  readonly stages: readonly PipelineStage[];
  /** With defaults, and the origin of each value. */
  readonly tree: MapNode;
  /** Of everything that matters to the result: 64 hex digits. */
  readonly hash: string;
}

export interface LoadOptions {
  readonly env?: NodeJS.ProcessEnv;
  /** Values of --set, in order. */
  readonly sets?: readonly string[];
  /** Base of relative paths on the command line. */
  readonly cwd?: string;
}

/** Throws Q4Errors with every mistake of the file, in its order. */
export function loadPipeline(path: string, options: LoadOptions = {}): Pipeline {
  const { env = process.env, sets = [], cwd = process.cwd() } = options;
  const overrides = [...environmentOverrides(env), ...sets.map(parseSet)];
  const file = resolve(cwd, path);
  const composed = composePipeline(file);
  if (composed.root === null) throw new Q4Errors(composed.errors);
  const overridden = applyOverrides(composed.root, overrides, cwd);
  const resolved = resolveReferences(overridden.root, env);
  const { root, data, validation } = validateTyped(resolved.root);
  const errors = [
    ...composed.errors,
    ...overridden.errors,
    ...resolved.errors,
    ...toQ4Errors(validation.errors, root),
    ...checkStages(root, data, resolved.late),
  ];
  if (errors.length > 0) throw new Q4Errors(inFileOrder(errors, composed.files));
  return complete(root, data, validation.annotations, composed.files);
}

const MAX_RETYPINGS = 8;

/** Text from the command line or environment becomes what the schema wants there; files say their types themselves. */
function validateTyped(start: MapNode): { root: MapNode; data: Plain; validation: Validation } {
  const validator = new Validator();
  let root = start;
  for (let round = 0; ; round++) {
    const data = toPlain(root);
    const uses = [...new Set(roughStages(data).map((stage) => stage.uses))].filter((name) =>
      stageNames().includes(name),
    );
    const validation = validator.pipeline(data, uses);
    let changed = false;
    for (const error of validation.errors) {
      const node = nodeAt(root, error.path);
      if (node?.kind !== 'scalar' || node.untyped !== true || typeof node.value !== 'string') continue;
      const value = parseValue(node.value);
      if (value === undefined || typeof value === 'string' || value === null) continue;
      root = replaceAt(root, error.path, fromPlain(value, node.origin, node.base)) as MapNode;
      changed = true;
    }
    if (!changed || round >= MAX_RETYPINGS) return { root, data, validation };
  }
}

function inFileOrder(errors: readonly Q4Error[], files: readonly string[]): Q4Error[] {
  const rank = (error: Q4Error): number => {
    const index = error.details.file === undefined ? -1 : files.indexOf(error.details.file);
    return index < 0 ? files.length : index;
  };
  const told = new Set<string>();
  const once = errors.filter((error) => {
    // A variable that cannot be resolved is told where it stands, not again wherever it is used.
    if (error.code !== 'Q4110') return true;
    const known = told.has(error.message);
    told.add(error.message);
    return !known;
  });
  return once.sort(
    (a, b) =>
      rank(a) - rank(b) ||
      (a.details.line ?? 0) - (b.details.line ?? 0) ||
      (a.details.col ?? 0) - (b.details.col ?? 0),
  );
}

/** Adds what the schema filled in to the tree. */
function withDefaults(node: ConfigNode, data: Plain): ConfigNode {
  if (node.kind === 'map' && typeof data === 'object' && data !== null && !Array.isArray(data)) {
    const entries = new Map(node.entries);
    for (const [key, value] of Object.entries(data)) {
      const entry = entries.get(key);
      const child =
        entry === undefined ? fromPlain(value, { kind: 'default' }, '') : withDefaults(entry.node, value);
      entries.set(key, { keyOrigin: entry?.keyOrigin ?? { kind: 'default' }, node: child });
    }
    return { ...node, entries };
  }
  if (node.kind === 'sequence' && Array.isArray(data)) {
    return { ...node, items: node.items.map((item, i) => withDefaults(item, data[i]!)) };
  }
  return node;
}

function complete(
  root: MapNode,
  data: Plain,
  annotations: readonly Annotation[],
  files: readonly string[],
): Pipeline {
  const file = files[0]!;
  if (!root.entries.has('name')) {
    const name = basename(file)
      .replace(/\.ya?ml$/i, '')
      .replace(/[^A-Za-z0-9._-]/g, '-')
      .replace(/^[^A-Za-z0-9]+/, '');
    (data as Record<string, Plain>)['name'] = name.slice(0, 64) || 'pipeline';
  }
  let tree = withDefaults(root, data) as MapNode;
  for (const { keyword, value, path } of annotations) {
    if (keyword !== 'x-path' || value === 'output') continue;
    const node = nodeAt(tree, path);
    if (node?.kind !== 'scalar' || typeof node.value !== 'string' || node.late === true) continue;
    tree = replaceAt(tree, path, { ...node, value: resolve(node.base, node.value) }) as MapNode;
  }
  const plain = toPlain(tree) as unknown as { name: string; runtime: RuntimeSettings };
  const stages = roughStages(toPlain(tree)).map(({ index, ...stage }): PipelineStage => {
    const below = annotations.filter(
      ({ path }) => path[0] === 'stages' && path[1] === index && path[2] === 'with',
    );
    const relative = (path: Path): Path => path.slice(3);
    return {
      ...stage,
      index,
      with: withoutFree(stage.with),
      late: lateTexts(nodeAt(tree, ['stages', index, 'with'])),
      paths: below
        .filter(({ keyword }) => keyword === 'x-path')
        .map(({ path, value }) => ({ path: relative(path), use: value as PathUse['use'] })),
      byPrecision: below
        .filter(({ keyword }) => keyword === 'x-defaults-by-precision')
        .map(({ path, value }) => ({
          path: relative(path),
          values: value as Record<string, Record<string, Plain>>,
        })),
    };
  });
  const ordered = runOrder(stages);
  const ignored = annotations.filter(({ keyword, value }) => keyword === 'x-identity' && value === false);
  return {
    name: plain.name,
    file,
    files,
    runtime: plain.runtime,
    stages: ordered,
    tree,
    hash: identity(tree, ignored),
  };
}

/** Without `x-` keys, at any depth. */
function withoutFree<T extends Plain>(value: T): T {
  if (Array.isArray(value)) return value.map(withoutFree) as T;
  if (typeof value !== 'object' || value === null) return value;
  const kept = Object.entries(value).filter(([key]) => !key.startsWith('x-'));
  return Object.fromEntries(kept.map(([key, item]) => [key, withoutFree(item)])) as T;
}

function lateTexts(
  node: ConfigNode | undefined,
  path: Path = [],
): { path: Path; text: string; base: string }[] {
  if (node === undefined) return [];
  if (node.kind === 'scalar') {
    return node.late === true && typeof node.value === 'string'
      ? [{ path, text: node.value, base: node.base }]
      : [];
  }
  if (node.kind === 'sequence') return node.items.flatMap((item, i) => lateTexts(item, [...path, i]));
  return [...node.entries].flatMap(([key, entry]) => lateTexts(entry.node, [...path, key]));
}

/** A hash of the stages and the runtime, without what changes only the display or the place of the work. */
function identity(tree: MapNode, ignored: readonly Annotation[]): string {
  const skip = new Set(ignored.map(({ path }) => path.join('\n')));
  const canonical = (node: ConfigNode, path: Path): unknown => {
    if (node.kind === 'scalar') return node.value;
    if (node.kind === 'sequence') return node.items.map((item, i) => canonical(item, [...path, i]));
    return [...node.entries]
      .filter(([key]) => !key.startsWith('x-') && !skip.has([...path, key].join('\n')))
      .sort(([a], [b]) => (a < b ? -1 : 1))
      .map(([key, entry]) => [key, canonical(entry.node, [...path, key])]);
  };
  const parts = ['runtime', 'stages'].map((key) => canonical(tree.entries.get(key)!.node, [key]));
  return createHash('sha256').update(JSON.stringify(parts)).digest('hex');
}
