/** A pipeline file with everything it extends and includes, as one tree. */
import { readFileSync, statSync } from 'node:fs';
import { dirname, resolve } from 'node:path';

import { Q4Error } from '../../errors.js';
import { placeOf, type ConfigNode, type MapNode, type Origin, type SequenceNode } from './tree.js';
import { parseYaml } from './yaml-text.js';

const MAX_FILE_BYTES = 4 * 1024 * 1024;

export interface Composed {
  readonly root: MapNode | null;
  /** Every file read, absolute, the main one first. */
  readonly files: readonly string[];
  readonly errors: readonly Q4Error[];
}

/** @param file absolute */
export function composePipeline(file: string): Composed {
  const composer = new Composer();
  const root = composer.load(file, [], undefined);
  return { root, files: composer.files, errors: composer.errors };
}

class Composer {
  readonly files: string[] = [];
  readonly errors: Q4Error[] = [];

  load(file: string, inside: readonly string[], from: Origin | undefined): MapNode | null {
    if (inside.includes(file)) {
      const circle = [...inside.slice(inside.indexOf(file)), file]
        .map((path) => path.split('/').pop())
        .join(' → ');
      this.fail(`this file comes back to itself: ${circle}`, from);
      return null;
    }
    const text = this.readText(file, from);
    if (text === null) return null;
    if (!this.files.includes(file)) this.files.push(file);
    const { root, errors } = parseYaml(file, text);
    this.errors.push(...errors);
    if (root === null) return null;
    if (root.kind !== 'map') {
      const place = { file, line: 1, col: 1, hint: 'it starts with version: 1 and a list of stages' };
      this.errors.push(new Q4Error('Q4104', 'a pipeline file is a map of keys', place));
      return null;
    }
    return this.compose(root, file, [...inside, file]);
  }

  private compose(own: MapNode, file: string, inside: readonly string[]): MapNode {
    let included: MapNode | null = null;
    for (const [path, origin] of this.references(own, 'include')) {
      const piece = this.load(resolve(dirname(file), path), inside, origin);
      if (piece !== null) included = included === null ? piece : this.join(included, piece, []);
    }
    const whole = included === null ? own : this.join(included, own, []);
    let base: MapNode | null = null;
    for (const [path, origin] of this.references(own, 'extends')) {
      const parent = this.load(resolve(dirname(file), path), inside, origin);
      if (parent !== null) base = base === null ? parent : override(base, parent);
    }
    return without(base === null ? whole : override(base, whole), ['extends', 'include']);
  }

  /** The paths in `extends:` or `include:`; values of a wrong type are left to the schema. */
  private references(root: MapNode, key: string): [string, Origin][] {
    const node = root.entries.get(key)?.node;
    if (node === undefined) return [];
    const found: [string, Origin][] = [];
    for (const item of node.kind === 'sequence' ? node.items : [node]) {
      if (item.kind === 'scalar' && typeof item.value === 'string') found.push([item.value, item.origin]);
      else this.fail(`${key} names files`, item.origin);
    }
    return found;
  }

  /** Adds the pieces of two files; a value that both define differently is an error, at the later one. */
  private join(a: MapNode, b: MapNode, path: readonly string[]): MapNode {
    const entries = new Map(a.entries);
    for (const [key, entry] of b.entries) {
      const there = entries.get(key);
      if (
        there === undefined ||
        (path.length === 0 && ['extends', 'include', 'name', 'description'].includes(key))
      ) {
        entries.set(key, entry);
      } else if (there.node.kind === 'map' && entry.node.kind === 'map') {
        entries.set(key, { ...entry, node: this.join(there.node, entry.node, [...path, key]) });
      } else if (path.length === 0 && key === 'stages' && isSequence(there.node) && isSequence(entry.node)) {
        entries.set(key, {
          ...entry,
          node: { ...entry.node, items: [...there.node.items, ...entry.node.items] },
        });
      } else if (!sameScalar(there.node, entry.node)) {
        const { file, line } = placeOf(there.keyOrigin);
        this.fail(`'${[...path, key].join('.')}' is defined differently in ${file}:${line}`, entry.keyOrigin);
      }
    }
    return { ...b, entries };
  }

  private readText(file: string, from: Origin | undefined): string | null {
    try {
      const { size } = statSync(file);
      if (size > MAX_FILE_BYTES) {
        this.errors.push(
          new Q4Error('Q4101', `the file has ${size} bytes; a pipeline has at most 4 MiB`, { file }),
        );
        return null;
      }
      return new TextDecoder('utf-8', { fatal: true }).decode(readFileSync(file));
    } catch (cause) {
      if (
        cause instanceof TypeError &&
        (cause as NodeJS.ErrnoException).code === 'ERR_ENCODING_INVALID_ENCODED_DATA'
      ) {
        this.errors.push(new Q4Error('Q4101', 'the file is not UTF-8 text', { file, cause }));
      } else if (from === undefined) {
        const reason =
          (cause as NodeJS.ErrnoException).code === 'ENOENT' ? 'no such file' : (cause as Error).message;
        this.errors.push(new Q4Error('Q4003', `cannot read the pipeline ${file}: ${reason}`, { cause }));
      } else {
        this.fail(`cannot read ${file}: ${(cause as Error).message}`, from);
      }
      return null;
    }
  }

  private fail(message: string, at: Origin | undefined): void {
    this.errors.push(new Q4Error('Q4111', message, at === undefined ? {} : placeOf(at)));
  }
}

const isSequence = (node: ConfigNode): node is SequenceNode => node.kind === 'sequence';

const sameScalar = (a: ConfigNode, b: ConfigNode): boolean =>
  a.kind === 'scalar' && b.kind === 'scalar' && a.value === b.value;

const without = (node: MapNode, keys: readonly string[]): MapNode => ({
  ...node,
  entries: new Map([...node.entries].filter(([key]) => !keys.includes(key))),
});

/** `over` wins; maps merge key by key, lists are replaced, except `stages`, which merge by id. */
export function override(base: MapNode, over: MapNode, path: readonly string[] = []): MapNode {
  const entries = new Map(base.entries);
  for (const [key, entry] of over.entries) {
    const there = entries.get(key)?.node;
    if (there?.kind === 'map' && entry.node.kind === 'map') {
      entries.set(key, { ...entry, node: override(there, entry.node, [...path, key]) });
    } else if (
      path.length === 0 &&
      key === 'stages' &&
      there !== undefined &&
      isSequence(there) &&
      isSequence(entry.node)
    ) {
      entries.set(key, { ...entry, node: overrideStages(there, entry.node) });
    } else {
      entries.set(key, entry);
    }
  }
  return { ...over, entries };
}

const scalarOf = (node: ConfigNode, key: string): unknown => {
  const child = node.kind === 'map' ? node.entries.get(key)?.node : undefined;
  return child?.kind === 'scalar' ? child.value : undefined;
};

function overrideStages(base: SequenceNode, over: SequenceNode): SequenceNode {
  const items = [...base.items];
  for (const stage of over.items) {
    const id = scalarOf(stage, 'id');
    const index = id === undefined ? -1 : items.findIndex((item) => scalarOf(item, 'id') === id);
    const there = items[index];
    if (there?.kind !== 'map' || stage.kind !== 'map') {
      items.push(stage);
      continue;
    }
    // Another kind of stage has other parameters: its `with` is not mixed with the old one's.
    const uses = scalarOf(stage, 'uses');
    const changed = uses !== undefined && uses !== scalarOf(there, 'uses');
    items[index] = override(changed ? without(there, ['with']) : there, stage, ['stages']);
  }
  return { ...over, items };
}

/** The stage ids of a composed tree, in order, with their places in the list. */
export function stageIds(root: MapNode): Map<string, number> {
  const ids = new Map<string, number>();
  const stages = root.entries.get('stages')?.node;
  if (stages?.kind !== 'sequence') return ids;
  stages.items.forEach((stage, index) => {
    const id = scalarOf(stage, 'id');
    if (typeof id === 'string' && !ids.has(id)) ids.set(id, index);
  });
  return ids;
}
