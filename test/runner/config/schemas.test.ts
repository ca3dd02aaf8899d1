/** The schemas themselves: valid draft-07, complete, and one with the stages. */
import { readFileSync, readdirSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { test } from 'uvu';
import * as assert from 'uvu/assert';

import { PACKAGE_ROOT } from '../../../runtime/runner/config/package-root.js';
import { loadPipeline } from '../../../runtime/runner/config/pipeline.js';
import { readSchema, readStageSchema, stageNames } from '../../../runtime/runner/config/schemas.js';
import { Validator } from '../../../runtime/runner/config/validator.js';
import { STAGES } from '../../../stages/index.js';

type Json = Record<string, unknown>;

const ALL = [
  'pipeline',
  'report',
  'events',
  'checkpoint-manifest',
  ...stageNames().map((name) => `stages/${name}`),
];
const { Ajv } = createRequire(import.meta.url)('ajv') as {
  Ajv: new (options: object) => { validateSchema(s: unknown): boolean; errors: unknown };
};

test('every schema is valid draft-07', () => {
  for (const name of ALL) {
    const ajv = new Ajv({ strict: false });
    assert.ok(ajv.validateSchema(readSchema(name)), `${name}: ${JSON.stringify(ajv.errors)}`);
    assert.is(readSchema(name)['$schema'], 'http://json-schema.org/draft-07/schema#');
    assert.ok(readSchema(name)['$id']!.endsWith(`/${name}.schema.json`));
  }
});

test('every schema compiles in strict mode', () => {
  const validator = new Validator();
  for (const name of stageNames()) validator.document(`stages/${name}`, {});
  validator.document('report', {});
  validator.document('events', {});
  validator.document('checkpoint-manifest', {});
  new Validator().pipeline({}, stageNames());
});

/** Every `properties` of a schema, at any depth. */
function* properties(schema: unknown, path: string): Generator<[string, Json]> {
  if (typeof schema !== 'object' || schema === null) return;
  for (const [key, value] of Object.entries(schema as Json)) {
    if (key === 'properties')
      for (const [name, property] of Object.entries(value as Json))
        yield [`${path}.${name}`, property as Json];
    yield* properties(value, key === 'properties' ? path : `${path}/${key}`);
  }
}

test('every key of a pipeline is described, and every map is closed', () => {
  for (const name of ['pipeline', ...stageNames().map((stage) => `stages/${stage}`)]) {
    for (const [path, property] of properties(readSchema(name), name)) {
      if (path.includes('/if.') || path.includes('/then.') || path.includes('/allOf/')) continue;
      assert.type(property['description'], 'string', `${path} has no description`);
      const open = property['type'] === 'object' && property['properties'] !== undefined;
      if (open) assert.is(property['additionalProperties'], false, `${path} takes unknown keys`);
    }
  }
});

test('defaults satisfy their own schemas', () => {
  for (const name of stageNames()) {
    for (const [path, property] of properties(readSchema(`stages/${name}`), name)) {
      if (!('default' in property)) continue;
      const ajv = createRequire(import.meta.url)('ajv') as {
        Ajv: new (o: object) => { validate(s: object, d: unknown): boolean };
      };
      const { $ref: _ref, ...own } = property;
      assert.ok(
        new ajv.Ajv({ strict: false, logger: false }).validate(own, property['default']),
        `${path}: default`,
      );
    }
  }
});

test('each stage has its schema, with the same takes and gives, and stands in the pipeline schema', () => {
  const frame = readSchema('pipeline') as unknown as {
    properties: { stages: { items: { properties: { uses: { enum: string[] } }; allOf: Json[] } } };
  };
  const { items } = frame.properties.stages;
  assert.equal([...items.properties.uses.enum].sort(), stageNames());
  assert.equal(STAGES.map(({ uses }) => uses).sort(), stageNames());
  const branches = items.allOf.map((branch) => JSON.stringify(branch));
  for (const stage of STAGES) {
    const schema = readStageSchema(stage.uses);
    assert.equal(schema['x-gives'], stage.gives, `${stage.uses} gives`);
    const uses = [...stage.takes.flat(), ...(stage.mayTake ?? [])];
    if (schema['x-takes-nothing-with'] === undefined) {
      assert.equal(schema['x-takes'], stage.takes, `${stage.uses} takes`);
    } else
      for (const kind of schema['x-takes'].flat())
        assert.ok(uses.includes(kind), `${stage.uses} takes ${kind}`);
    assert.ok(
      branches.some((branch) => branch.includes(`stages/${stage.uses}.schema.json`)),
      stage.uses,
    );
  }
});

test('the pipelines that ship are right', () => {
  const folder = join(PACKAGE_ROOT, 'pipelines');
  const files = readdirSync(folder).filter((name) => name.endsWith('.yaml'));
  assert.ok(files.length >= 5);
  for (const name of files) {
    assert.ok(loadPipeline(join(folder, name), { env: {} }).stages.length > 1, name);
    assert.match(
      readFileSync(join(folder, name), 'utf8'),
      /^# yaml-language-server: \$schema=\.\.\/schemas\/pipeline\.schema\.json\n/,
    );
  }
});

test.run();
