/** The configuration as a tree in which every value knows where it was written. */
import type { ErrorPlace } from '../../errors.js';

export interface FileOrigin {
  readonly kind: 'file';
  /** Absolute. */
  readonly file: string;
  readonly line: number;
  readonly col: number;
}

export type Origin =
  | FileOrigin
  | { readonly kind: 'env'; readonly name: string }
  | { readonly kind: 'set'; readonly text: string }
  | { readonly kind: 'default' };

export type ScalarValue = string | number | boolean | null;

export interface ScalarNode {
  readonly kind: 'scalar';
  readonly value: ScalarValue;
  readonly origin: Origin;
  /** Directory that a relative path in this value belongs to. */
  readonly base: string;
  /** Text from the command line or environment: becomes a number, list or map where the schema wants one. */
  readonly untyped?: boolean;
  /** Holds ${stages.…}: known only when the stage starts. */
  readonly late?: boolean;
}

export interface MapEntry {
  readonly keyOrigin: Origin;
  readonly node: ConfigNode;
}

export interface MapNode {
  readonly kind: 'map';
  readonly entries: ReadonlyMap<string, MapEntry>;
  readonly origin: Origin;
}

export interface SequenceNode {
  readonly kind: 'sequence';
  readonly items: readonly ConfigNode[];
  readonly origin: Origin;
}

export type ConfigNode = ScalarNode | MapNode | SequenceNode;
export type Path = readonly (string | number)[];
export type Plain = ScalarValue | Plain[] | { [key: string]: Plain };

export function toPlain(node: ConfigNode): Plain {
  switch (node.kind) {
    case 'scalar':
      return node.value;
    case 'sequence':
      return node.items.map(toPlain);
    case 'map':
      // A null prototype would surprise ajv; keys were checked to be ordinary (`__proto__` is refused by the reader).
      return Object.fromEntries([...node.entries].map(([key, entry]) => [key, toPlain(entry.node)]));
  }
}

/** The tree of plain data that all came from one place. */
export function fromPlain(value: Plain, origin: Origin, base: string): ConfigNode {
  if (Array.isArray(value)) {
    return { kind: 'sequence', items: value.map((item) => fromPlain(item, origin, base)), origin };
  }
  if (typeof value === 'object' && value !== null) {
    const entries = Object.entries(value).map(
      ([key, item]) => [key, { keyOrigin: origin, node: fromPlain(item, origin, base) }] as const,
    );
    return { kind: 'map', entries: new Map(entries), origin };
  }
  return { kind: 'scalar', value, origin, base };
}

export function childOf(node: ConfigNode, key: string | number): ConfigNode | undefined {
  if (node.kind === 'map') return node.entries.get(String(key))?.node;
  if (node.kind === 'sequence') return node.items[Number(key)];
  return undefined;
}

export function nodeAt(root: ConfigNode, path: Path): ConfigNode | undefined {
  let node: ConfigNode | undefined = root;
  for (const key of path) node = node && childOf(node, key);
  return node;
}

/** The origin of the value at `path`, or of the nearest thing around it that was written. */
export function originAt(root: ConfigNode, path: Path): Origin {
  let node = root;
  for (const key of path) {
    const child = childOf(node, key);
    if (child === undefined) break;
    node = child;
  }
  return node.origin;
}

/** The origin of the key at `path` (its value's place would point past it). */
export function keyOriginAt(root: ConfigNode, path: Path): Origin {
  const parent = nodeAt(root, path.slice(0, -1));
  const entry = parent?.kind === 'map' ? parent.entries.get(String(path[path.length - 1])) : undefined;
  return entry?.keyOrigin ?? originAt(root, path);
}

/** Replaces (or adds) the child `key`; the node is not changed. */
export function withChild(node: MapNode, key: string, child: ConfigNode, keyOrigin: Origin): MapNode {
  const entries = new Map(node.entries);
  entries.set(key, { keyOrigin: entries.get(key)?.keyOrigin ?? keyOrigin, node: child });
  return { ...node, entries };
}

/** Replaces the node at `path`, which must exist. */
export function replaceAt(node: ConfigNode, path: Path, replacement: ConfigNode): ConfigNode {
  const [key, ...rest] = path;
  if (key === undefined) return replacement;
  const child = childOf(node, key);
  if (child === undefined) return node;
  const changed = replaceAt(child, rest, replacement);
  if (node.kind === 'map') return withChild(node, String(key), changed, changed.origin);
  if (node.kind === 'sequence') {
    return { ...node, items: node.items.map((item, index) => (index === Number(key) ? changed : item)) };
  }
  return node;
}

/** Every scalar replaced by what `change` makes of it; `x-` keys are left alone. */
export function mapScalars(
  node: ConfigNode,
  change: (scalar: ScalarNode, path: Path) => ConfigNode,
  path: Path = [],
): ConfigNode {
  switch (node.kind) {
    case 'scalar':
      return change(node, path);
    case 'sequence':
      return { ...node, items: node.items.map((item, index) => mapScalars(item, change, [...path, index])) };
    case 'map': {
      const entries = [...node.entries].map(([key, entry]): [string, MapEntry] => [
        key,
        key.startsWith('x-') ? entry : { ...entry, node: mapScalars(entry.node, change, [...path, key]) },
      ]);
      return { ...node, entries: new Map(entries) };
    }
  }
}

export const placeOf = (origin: Origin): ErrorPlace => {
  switch (origin.kind) {
    case 'file':
      return { file: origin.file, line: origin.line, col: origin.col };
    case 'env':
      return { file: `environment variable ${origin.name}` };
    case 'set':
      return { file: `--set ${origin.text}` };
    case 'default':
      return {};
  }
};
