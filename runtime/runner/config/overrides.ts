/** Values from outside the file: `Q4RUN_SET_…` variables and `--set`, laid over the tree. */
import { Q4Error } from '../../errors.js';
import { stageIds } from './compose.js';
import { didYouMean } from './suggest.js';
import {
  childOf,
  fromPlain,
  withChild,
  type ConfigNode,
  type MapNode,
  type Origin,
  type Path,
} from './tree.js';
import { parseValue } from './yaml-text.js';

const TOP_LEVEL = ['version', 'name', 'description', 'vars', 'runtime', 'stages'];
const ENV_PREFIX = 'Q4RUN_SET_';

export interface Override {
  readonly path: readonly string[];
  readonly text: string;
  readonly origin: Origin;
}

/** `a.b.c=value`; a dot inside a key is not possible, keys have none. */
export function parseSet(argument: string): Override {
  const equals = argument.indexOf('=');
  const path = argument.slice(0, Math.max(equals, 0)).trim().split('.');
  if (equals < 1 || path.some((key) => key === '')) {
    throw new Q4Error('Q4002', `--set ${argument}: this is not a path and a value`, {
      hint: 'write --set a.b=c, such as --set train.steps=10',
    });
  }
  return { path, text: argument.slice(equals + 1), origin: { kind: 'set', text: argument } };
}

/** `Q4RUN_SET_TRAIN__STEPS=3` is `train.steps=3`: two underscores for a dot, in any case, `_` also for `-`. */
export function environmentOverrides(env: NodeJS.ProcessEnv): Override[] {
  return Object.keys(env)
    .filter((name) => name.startsWith(ENV_PREFIX) && name.length > ENV_PREFIX.length)
    .sort()
    .map((name) => ({
      path: name.slice(ENV_PREFIX.length).split('__'),
      text: env[name] ?? '',
      origin: { kind: 'env', name },
    }));
}

const loose = (key: string): string => key.toLowerCase().replaceAll('-', '_');

/** The key of `known` that is meant; environment variables cannot spell every key exactly. */
const meant = (key: string, known: Iterable<string>, exact: boolean): string | undefined => {
  const all = [...known];
  if (all.includes(key)) return key;
  return exact ? undefined : all.find((candidate) => loose(candidate) === loose(key));
};

/** The full path in the file: `train.steps` stands for `stages.<index of train>.with.steps`. */
function fullPath(root: MapNode, override: Override): Path {
  const exact = override.origin.kind !== 'env';
  const [first, ...rest] = override.path as [string, ...string[]];
  const stages = stageIds(root);
  const top = meant(first, TOP_LEVEL, exact);
  const spell = (keys: readonly string[], from: ConfigNode | undefined): Path => {
    let node = from;
    return keys.map((key) => {
      const known = node?.kind === 'map' ? node.entries.keys() : [];
      const index = node?.kind === 'sequence' || /^[0-9]+$/.test(key) ? Number(key) : NaN;
      const spelt =
        Number.isInteger(index) && node?.kind !== 'map'
          ? index
          : (meant(key, known, exact) ?? (exact ? key : key.toLowerCase()));
      node = node && childOf(node, spelt);
      return spelt;
    });
  };
  const stagePath = (name: string, keys: readonly string[], short: boolean): Path | undefined => {
    const id = /^[0-9]+$/.test(name) && !short ? undefined : meant(name, stages.keys(), exact);
    const index = id === undefined ? (short ? undefined : Number(name)) : stages.get(id);
    if (index === undefined || !Number.isInteger(index)) return undefined;
    const head = short ? ['stages', index, 'with'] : ['stages', index];
    let node: ConfigNode | undefined = root;
    for (const key of head) node = node && childOf(node, key);
    return [...head, ...spell(keys, node)];
  };
  let path: Path | undefined;
  if (top === 'stages' && rest.length > 0) path = stagePath(rest[0]!, rest.slice(1), false);
  else if (top !== undefined) path = [top, ...spell(rest, childOf(root, top))];
  else path = rest.length > 0 ? stagePath(first, rest, true) : undefined;
  if (path !== undefined) return path;
  const unknown = top === 'stages' ? rest[0]! : first;
  const hint =
    didYouMean(unknown, [...stages.keys(), ...(top === 'stages' ? [] : TOP_LEVEL)]) ??
    `stages are ${[...stages.keys()].join(', ') || 'none'}; runtime.… and vars.… can be set too`;
  const file =
    override.origin.kind === 'env'
      ? `environment variable ${override.origin.name}`
      : `--set ${override.path.join('.')}`;
  throw new Q4Error('Q4103', `there is no stage or key '${unknown}'`, { file, hint });
}

/** An earlier override that gave a whole list or map as text is read, so that a later one can go into it. */
function opened(node: ConfigNode | undefined): ConfigNode | undefined {
  if (node?.kind !== 'scalar' || node.untyped !== true || typeof node.value !== 'string') return node;
  const value = parseValue(node.value);
  return typeof value === 'object' && value !== null ? fromPlain(value, node.origin, node.base) : node;
}

function put(present: ConfigNode | undefined, path: Path, leaf: ConfigNode, override: Override): ConfigNode {
  const [key, ...rest] = path;
  if (key === undefined) return leaf;
  const node = opened(present);
  if (node?.kind === 'sequence' || (node === undefined && typeof key === 'number')) {
    const items = node?.kind === 'sequence' ? [...node.items] : [];
    if (typeof key !== 'number' || !Number.isInteger(key) || key > items.length) {
      throw new Q4Error('Q4105', `a list of ${items.length} has no place ${String(key)}`, {
        file: override.origin.kind === 'set' ? `--set ${override.origin.text}` : 'environment',
        hint: `places are numbered from 0; ${items.length} adds one`,
      });
    }
    items[key] = put(items[key], rest, leaf, override);
    return { kind: 'sequence', items, origin: node?.origin ?? override.origin };
  }
  const map: MapNode =
    node?.kind === 'map' ? node : { kind: 'map', entries: new Map(), origin: override.origin };
  return withChild(
    map,
    String(key),
    put(map.entries.get(String(key))?.node, rest, leaf, override),
    override.origin,
  );
}

/** Later overrides win. Values stay text until the schema has said what they must be. @param base for relative paths */
export function applyOverrides(
  root: MapNode,
  overrides: readonly Override[],
  base: string,
): { root: MapNode; errors: Q4Error[] } {
  const errors: Q4Error[] = [];
  let result: ConfigNode = root;
  for (const override of overrides) {
    const leaf: ConfigNode = {
      kind: 'scalar',
      value: override.text,
      origin: override.origin,
      base,
      untyped: true,
    };
    try {
      result = put(result, fullPath(result as MapNode, override), leaf, override);
    } catch (error) {
      if (!(error instanceof Q4Error)) throw error;
      errors.push(error);
    }
  }
  return { root: result as MapNode, errors };
}
