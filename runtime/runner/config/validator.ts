/** JSON Schema validation; the only file that knows ajv. Fills in defaults and collects our annotations. */
import { Ajv, type ErrorObject, type ValidateFunction } from 'ajv';

import { readSchema, type Schema } from './schemas.js';
import type { Path, Plain } from './tree.js';

export interface SchemaError {
  readonly keyword: string;
  readonly path: Path;
  readonly params: Readonly<Record<string, unknown>>;
  /** The keyword's value in the schema. */
  readonly schema: unknown;
  readonly parentSchema: Schema;
  readonly data: unknown;
}

/** An annotation met on the way: `x-path` of a value that is there, and the like. */
export interface Annotation {
  readonly keyword: string;
  readonly value: unknown;
  readonly path: Path;
}

export interface Validation {
  readonly errors: readonly SchemaError[];
  readonly annotations: readonly Annotation[];
}

const COLLECTED = ['x-path', 'x-identity', 'x-defaults-by-precision'];
const READ_FROM_SCHEMA = ['x-hint', 'x-aliases', 'x-takes', 'x-takes-nothing-with', 'x-gives'];

/** A JSON pointer's keys; digits become indices where they index a list. */
export function pointerPath(pointer: string, data: unknown): Path {
  let node = data;
  return pointer
    .split('/')
    .slice(1)
    .map((raw) => {
      const text = raw.replaceAll('~1', '/').replaceAll('~0', '~');
      const key = Array.isArray(node) ? Number(text) : text;
      node = (node as Record<string | number, unknown> | undefined)?.[key];
      return key;
    });
}

export class Validator {
  private readonly ajv: Ajv;
  private collected: { keyword: string; value: unknown; pointer: string }[] = [];

  constructor() {
    this.ajv = new Ajv({
      allErrors: true,
      strict: true,
      strictRequired: false,
      strictTypes: false,
      allowUnionTypes: true,
      allowMatchingProperties: true,
      useDefaults: true,
      verbose: true,
      // Our own schemas are checked against the meta-schema by a test, not on every start.
      validateSchema: false,
      meta: false,
      logger: false,
      // Compiling is most of what `check` waits for; our sentences are made in schema-errors.ts.
      messages: false,
      inlineRefs: false,
      code: { optimize: false },
    });
    this.ajv.addFormat('regex', (text: string) => {
      try {
        return new RegExp(text, 'u') instanceof RegExp;
      } catch {
        return false;
      }
    });
    for (const keyword of READ_FROM_SCHEMA) this.ajv.addKeyword(keyword);
    for (const keyword of COLLECTED) {
      this.ajv.addKeyword({
        keyword,
        errors: false,
        validate: (value: unknown, _data: unknown, _parent: unknown, context?: { instancePath: string }) => {
          this.collected.push({ keyword, value, pointer: context?.instancePath ?? '' });
          return true;
        },
      });
    }
    this.ajv.addKeyword({
      keyword: 'x-not-yet',
      schemaType: 'object',
      errors: false,
      validate: (later: Record<string, string>, data: unknown) => !Object.hasOwn(later, String(data)),
    });
  }

  /** A pipeline: its frame and each stage's `with` by its own schema. `data` gets the defaults filled in. */
  pipeline(data: Plain, uses: readonly string[]): Validation {
    return this.run(this.compiled('pipeline', uses), data);
  }

  /** One document by one schema, such as a stage's `with` after late references were resolved. */
  document(name: string, data: unknown): Validation {
    return this.run(this.compiled(name, []), data);
  }

  private compiled(name: string, uses: readonly string[]): ValidateFunction {
    const schema = readSchema(name);
    const known = this.ajv.getSchema(schema.$id);
    if (known !== undefined) return known as ValidateFunction;
    for (const stage of uses) {
      const stageSchema = readSchema(`stages/${stage}`);
      if (this.ajv.schemas[stageSchema.$id] === undefined) this.ajv.addSchema(stageSchema);
    }
    return this.ajv.compile(name === 'pipeline' ? onlyStages(schema, uses) : schema);
  }

  private run(validate: ValidateFunction, data: unknown): Validation {
    this.collected = [];
    const valid = validate(data) as boolean;
    const errors = valid ? [] : (validate.errors ?? []);
    return {
      errors: errors.map((error) => toSchemaError(error, data)),
      annotations: this.collected.map(({ keyword, value, pointer }) => ({
        keyword,
        value,
        path: pointerPath(pointer, data),
      })),
    };
  }
}

/** Leaves out the branches for stages that this pipeline does not use: compiling them is most of the time `check` takes. */
function onlyStages(pipeline: Schema, uses: readonly string[]): Schema {
  const copy = structuredClone(pipeline) as unknown as {
    properties: { stages: { items: { allOf: { if: { properties: { uses: { const: string } } } }[] } } };
  };
  const { items } = copy.properties.stages;
  items.allOf = items.allOf.filter((branch) => uses.includes(branch.if.properties.uses.const));
  if (items.allOf.length === 0) Reflect.deleteProperty(items, 'allOf');
  return copy as unknown as Schema;
}

const toSchemaError = (error: ErrorObject, data: unknown): SchemaError => ({
  keyword: error.keyword,
  path: pointerPath(error.instancePath, data),
  params: error.params as Record<string, unknown>,
  schema: error.schema,
  parentSchema: error.parentSchema as unknown as Schema,
  data: error.data,
});
