/** The JSON Schemas as they stand in schemas/, read when they are needed. */
import { readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';

import { PACKAGE_ROOT } from './package-root.js';

/** Draft-07 and our annotations (`x-…`). */
export interface Schema {
  readonly $id: string;
  readonly title: string;
  readonly description?: string;
  readonly properties?: Readonly<Record<string, Readonly<Record<string, unknown>>>>;
  readonly [keyword: string]: unknown;
}

export interface StageSchema extends Schema {
  /** Kinds of values needed: at least one of each inner list. */
  readonly 'x-takes': readonly (readonly string[])[];
  /** A key of `with` that makes the stage need nothing. */
  readonly 'x-takes-nothing-with'?: string;
  readonly 'x-gives': readonly string[];
}

const cache = new Map<string, Schema>();

/** @param name path below schemas/ without `.schema.json`, such as `pipeline` or `stages/train` */
export function readSchema(name: string): Schema {
  let schema = cache.get(name);
  if (schema === undefined) {
    schema = JSON.parse(readFileSync(join(PACKAGE_ROOT, 'schemas', `${name}.schema.json`), 'utf8')) as Schema;
    cache.set(name, schema);
  }
  return schema;
}

export const readStageSchema = (uses: string): StageSchema => readSchema(`stages/${uses}`) as StageSchema;

export const stageNames = (): string[] =>
  readdirSync(join(PACKAGE_ROOT, 'schemas', 'stages'))
    .filter((file) => file.endsWith('.schema.json'))
    .map((file) => file.slice(0, -'.schema.json'.length))
    .sort();
