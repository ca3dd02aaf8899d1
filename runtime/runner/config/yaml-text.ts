/** Text of YAML 1.2 → configuration tree with positions. The only file that knows the yaml package. */
import { dirname } from 'node:path';

import {
  LineCounter,
  isAlias,
  isMap,
  isScalar,
  isSeq,
  parseDocument,
  type Alias,
  type Document,
  type Node,
  type Pair,
  type YAMLError,
  type YAMLMap,
} from 'yaml';

import { Q4Error, type ErrorCode } from '../../errors.js';
import type { ConfigNode, FileOrigin, MapEntry, MapNode, Plain, ScalarValue } from './tree.js';

/** Nodes that one file may grow to through its aliases; a real pipeline has a few hundred. */
const MAX_NODES = 50_000;
const MAX_DEPTH = 64;

export interface ParsedYaml {
  /** null when the text is not YAML at all, or empty. */
  readonly root: ConfigNode | null;
  readonly errors: readonly Q4Error[];
}

const SYNTAX_HINTS: Readonly<Record<string, string>> = {
  TAB_AS_INDENT: 'indent with spaces',
  BAD_INDENT: 'keys of one map start in the same column',
  MULTIPLE_DOCS: 'one file holds one pipeline; remove the ---',
  MISSING_CHAR: 'a bracket, quote or colon is not closed or missing',
  BLOCK_AS_IMPLICIT_KEY: 'the line before may lack its closing quote, or the indentation is off',
  KEY_OVER_1024_CHARS: 'a key is a short name',
};

/** Syntax errors first; a text with any is not read further, except for duplicate keys. */
export function parseYaml(file: string, text: string): ParsedYaml {
  const lines = new LineCounter();
  const errors: Q4Error[] = [];
  let document: Document.Parsed;
  try {
    document = parseDocument(text, {
      lineCounter: lines,
      prettyErrors: false,
      logLevel: 'error',
      stringKeys: true,
    }) as Document.Parsed;
  } catch (cause) {
    // Deep nesting exhausts the parser's stack.
    return { root: null, errors: [new Q4Error('Q4101', 'the YAML is nested too deeply', { file, cause })] };
  }
  const place = (offset: number): FileOrigin => {
    const { line, col } = lines.linePos(offset);
    return { kind: 'file', file, line, col };
  };
  const problem = (error: YAMLError): Q4Error => {
    const { line, col } = place(error.pos[0]);
    if (error.code === 'DUPLICATE_KEY') {
      const key = /^[^\s:,[\]{}]+/.exec(text.slice(error.pos[0]))?.[0] ?? '';
      return new Q4Error('Q4102', `the key '${key}' stands here a second time`, {
        file,
        line,
        col,
        hint: 'remove one of the two',
      });
    }
    const details = { file, line, col };
    const hint = bareReference(text, error.pos[0]) ? BARE_REFERENCE_HINT : SYNTAX_HINTS[error.code];
    const message = error.message.replace(/ at line \d+, column \d+:?[\s\S]*$/, '');
    return new Q4Error('Q4101', message, hint === undefined ? details : { ...details, hint });
  };
  let broken = false;
  for (const error of [...document.errors, ...document.warnings]) {
    // What follows a syntax error is mostly its consequence.
    if (error.code === 'DUPLICATE_KEY' || !broken) errors.push(problem(error));
    if (error.code !== 'DUPLICATE_KEY') broken = true;
  }
  if (broken) return { root: null, errors };
  if (document.contents === null) {
    return {
      root: null,
      errors: [...errors, new Q4Error('Q4101', 'the file is empty', { file, line: 1, col: 1 })],
    };
  }
  const reader = new TreeReader(document, file, place, errors);
  return { root: reader.read(document.contents, []), errors };
}

const BARE_REFERENCE_HINT = 'inside { } and [ ], put a value with ${…} in quotes';

/** `{ path: ${vars.x} }` without quotes: the inner brace opens a map for YAML. */
function bareReference(text: string, offset: number): boolean {
  const from = text.lastIndexOf('\n', offset - 1) + 1;
  const line = text.slice(from, (text.indexOf('\n', offset) + text.length + 1) % (text.length + 1));
  return /[{[,:]\s*\$\{/.test(line);
}

class TreeReader {
  private nodes = 0;
  private exploded = false;
  private readonly base: string;

  constructor(
    private readonly document: Document.Parsed,
    file: string,
    private readonly place: (offset: number) => FileOrigin,
    private readonly errors: Q4Error[],
  ) {
    this.base = dirname(file);
  }

  /** `inside` are the nodes around this one, aliases followed: an alias to one of them would never end. */
  read(node: Node | null, inside: readonly Node[], fallback?: FileOrigin): ConfigNode {
    const origin = node?.range ? this.place(node.range[0]) : (fallback ?? this.place(0));
    this.nodes += 1;
    if (isAlias(node)) return this.readAlias(node, inside, origin);
    if (inside.length > MAX_DEPTH) {
      this.fail('Q4101', `maps and lists are nested more than ${MAX_DEPTH} deep`, origin, 'flatten them');
      return this.scalar(null, origin);
    }
    if (isMap(node)) return this.readMap(node as YAMLMap, [...inside, node], origin);
    if (isSeq(node)) {
      const items = node.items.map((item) => this.read(item as Node, [...inside, node], origin));
      return { kind: 'sequence', items, origin };
    }
    if (isScalar(node)) {
      const value = node.value as ScalarValue | bigint;
      if (typeof value === 'number' && Number.isInteger(value) && !Number.isSafeInteger(value)) {
        if (/^[-+]?[0-9]+$/.test(node.source ?? '')) {
          this.fail(
            'Q4105',
            `${node.source} has more digits than can be kept`,
            origin,
            'integers go up to 2^53 - 1',
          );
        }
      }
      return this.scalar(typeof value === 'bigint' ? Number(value) : value, origin);
    }
    return this.scalar(null, origin);
  }

  private scalar(value: ScalarValue, origin: FileOrigin): ConfigNode {
    return { kind: 'scalar', value, origin, base: this.base };
  }

  private readAlias(alias: Alias, inside: readonly Node[], origin: FileOrigin): ConfigNode {
    if (this.nodes > MAX_NODES) {
      if (!this.exploded) {
        this.exploded = true;
        const hint = 'use fewer aliases of aliases';
        this.fail('Q4109', `the aliases of this file expand to more than ${MAX_NODES} values`, origin, hint);
      }
      return this.scalar(null, origin);
    }
    let target: Node | undefined;
    try {
      target = alias.resolve(this.document);
    } catch {
      target = undefined;
    }
    if (target === undefined) {
      const hint = `put &${alias.source} before the value that it means, further up in this file`;
      this.fail('Q4109', `the alias *${alias.source} has no anchor &${alias.source} before it`, origin, hint);
      return this.scalar(null, origin);
    }
    if (inside.includes(target)) {
      const hint = 'write the value out, or put the anchor on a smaller one';
      this.fail('Q4109', `the alias *${alias.source} stands inside the value it refers to`, origin, hint);
      return this.scalar(null, origin);
    }
    return this.read(target, inside, origin);
  }

  private readMap(map: YAMLMap, inside: readonly Node[], origin: FileOrigin): MapNode {
    const own = new Map<string, MapEntry>();
    const merged = new Map<string, MapEntry>();
    for (const pair of map.items as Pair<Node, Node | null>[]) {
      const keyOrigin = pair.key.range ? this.place(pair.key.range[0]) : origin;
      const key = isScalar(pair.key) ? String(pair.key.value) : '';
      if (key === '<<' && isScalar(pair.key) && pair.key.type === 'PLAIN') {
        this.merge(merged, pair.value, inside, keyOrigin);
        continue;
      }
      if (key === '__proto__') {
        this.fail('Q4103', `the key '__proto__' is not allowed`, keyOrigin);
        continue;
      }
      own.set(key, { keyOrigin, node: this.read(pair.value, inside, keyOrigin) });
    }
    // Merged keys come first, so that a map prints in the order in which it was thought; own keys win.
    for (const [key, entry] of own) merged.set(key, entry);
    return { kind: 'map', entries: merged, origin };
  }

  /** `<<: *map` or `<<: [*a, *b]`, where the earlier wins. */
  private merge(
    into: Map<string, MapEntry>,
    value: Node | null,
    inside: readonly Node[],
    origin: FileOrigin,
  ): void {
    const source = this.read(value, inside, origin);
    const maps = source.kind === 'sequence' ? source.items : [source];
    for (const map of maps) {
      if (map.kind !== 'map') {
        this.fail('Q4104', `<< merges maps, and this is not one`, origin, 'write <<: *name or <<: [*a, *b]');
        continue;
      }
      for (const [key, entry] of map.entries) if (!into.has(key)) into.set(key, entry);
    }
  }

  private fail(code: ErrorCode, message: string, at: FileOrigin, hint?: string): void {
    const place = { file: at.file, line: at.line, col: at.col };
    this.errors.push(new Q4Error(code, message, hint === undefined ? place : { ...place, hint }));
  }
}

/** What a piece of text means as YAML: `3` is a number, `[a, b]` a list. undefined when it is not YAML. */
export function parseValue(text: string): Plain | undefined {
  const document = parseDocument(text, { prettyErrors: false, logLevel: 'error', stringKeys: true });
  if (document.errors.length > 0 || document.warnings.length > 0) return undefined;
  try {
    return document.toJS({ maxAliasCount: 0 }) as Plain;
  } catch {
    return undefined;
  }
}
