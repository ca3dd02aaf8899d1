/** The effective configuration as YAML that runs again, each line with the origin of its value. */
import type { ConfigNode, MapNode, Origin, ScalarNode } from './tree.js';
import { parseValue } from './yaml-text.js';

interface Line {
  readonly text: string;
  readonly origin: Origin | null;
}

const PLAIN = /^[A-Za-z0-9_./][A-Za-z0-9_ ./+-]*$/;

function scalarText(node: ScalarNode): string {
  const { value } = node;
  if (typeof value !== 'string') return value === null ? 'null' : String(value);
  const text = node.late === true ? value : value.replaceAll('${', '$${');
  return PLAIN.test(text) && !text.endsWith(' ') && parseValue(text) === text ? text : JSON.stringify(text);
}

const keyText = (key: string): string => (/^[A-Za-z_][A-Za-z0-9_-]*$/.test(key) ? key : JSON.stringify(key));

const isScalarList = (node: ConfigNode): boolean =>
  node.kind === 'sequence' && node.items.length > 0 && node.items.every((item) => item.kind === 'scalar');

function lines(node: ConfigNode, indent: string): Line[] {
  if (node.kind === 'map') {
    return [...node.entries].flatMap(([key, { node: child }]) =>
      entryLines(`${indent}${keyText(key)}:`, child, indent),
    );
  }
  if (node.kind === 'sequence') {
    return node.items.flatMap((item) => {
      const below = lines(item, `${indent}  `);
      const [first, ...rest] = below;
      if (first === undefined) return [{ text: `${indent}- ${empty(item)}`, origin: item.origin }];
      return [{ ...first, text: `${indent}- ${first.text.slice(indent.length + 2)}` }, ...rest];
    });
  }
  return [{ text: `${indent}${scalarText(node)}`, origin: node.origin }];
}

const empty = (node: ConfigNode): string => (node.kind === 'map' ? '{}' : '[]');

function entryLines(head: string, child: ConfigNode, indent: string): Line[] {
  if (child.kind === 'scalar') return [{ text: `${head} ${scalarText(child)}`, origin: child.origin }];
  if (child.kind === 'sequence' && isScalarList(child)) {
    const items = child.items.map((item) => scalarText(item as ScalarNode));
    return [{ text: `${head} [${items.join(', ')}]`, origin: child.origin }];
  }
  const below = lines(child, `${indent}  `);
  if (below.length === 0) return [{ text: `${head} ${empty(child)}`, origin: child.origin }];
  return [{ text: head, origin: null }, ...below];
}

/** file:line:col, a variable, a flag, or the schema. */
export function originText(origin: Origin, shorten: (path: string) => string): string {
  switch (origin.kind) {
    case 'file':
      return `${shorten(origin.file)}:${origin.line}:${origin.col}`;
    case 'env':
      return `$${origin.name}`;
    case 'set':
      return `--set ${origin.text}`;
    case 'default':
      return 'default';
  }
}

const COMMENT_COLUMN = 56;

/** @param shorten how to show file names; @param comment colours the comments */
export function effectiveYaml(
  tree: MapNode,
  shorten: (path: string) => string,
  comment: (text: string) => string = (text) => text,
): string {
  const rows = lines(tree, '').map(({ text, origin }) => {
    if (origin === null) return text;
    // An override may hold a line break, which would end the comment.
    const note = originText(origin, shorten).replace(/\s+/g, ' ');
    return `${text.padEnd(COMMENT_COLUMN)} ${comment(`# ${note}`)}`;
  });
  return `${rows.join('\n')}\n`;
}

/** The leaves, as a table for reports: dotted key, value, origin. */
export function effectiveRows(
  tree: ConfigNode,
  shorten: (path: string) => string,
): { key: string; value: string; origin: string }[] {
  const rows: { key: string; value: string; origin: string }[] = [];
  const walk = (node: ConfigNode, key: string): void => {
    if (node.kind === 'scalar') {
      rows.push({ key, value: scalarText(node), origin: originText(node.origin, shorten) });
    } else if (node.kind === 'sequence') {
      if (isScalarList(node)) {
        const value = node.items.map((item) => scalarText(item as ScalarNode)).join(', ');
        rows.push({ key, value: `[${value}]`, origin: originText(node.origin, shorten) });
      } else node.items.forEach((item, i) => walk(item, `${key}.${idOf(item) ?? i}`));
    } else
      for (const [name, { node: child }] of node.entries) walk(child, key === '' ? name : `${key}.${name}`);
  };
  walk(tree, '');
  return rows;
}

const idOf = (node: ConfigNode): string | undefined => {
  const id = node.kind === 'map' ? node.entries.get('id')?.node : undefined;
  return id?.kind === 'scalar' && typeof id.value === 'string' ? id.value : undefined;
};
