import { test } from 'uvu';
import * as assert from 'uvu/assert';

import { nodeAt, placeOf, toPlain } from '../../../runtime/runner/config/tree.js';
import { parseValue, parseYaml } from '../../../runtime/runner/config/yaml-text.js';

const parse = (text: string) => parseYaml('/f.yaml', text);
const plain = (text: string) => toPlain(parse(text).root!);
/** `code line:col` of each error. */
const errors = (text: string) =>
  parse(text).errors.map(({ code, details }) => `${code} ${details.line}:${details.col}`);

test('every value knows its line and column', () => {
  const { root } = parse('a:\n  - x\n  - { b: 3 }\n');
  assert.equal(placeOf(nodeAt(root!, ['a', 1, 'b'])!.origin), { file: '/f.yaml', line: 3, col: 10 });
});

test('YAML 1.2: what 1.1 read otherwise', () => {
  assert.equal(plain('a: [on, yes, 1e-4, 010, 1_000, 0o17, ~]'), {
    a: ['on', 'yes', 1e-4, 10, '1_000', 15, null],
  });
});

test('merge keys: own keys win, earlier maps win, origins are those of the anchor', () => {
  const text = 'x-a: &a { k: 1, l: 1 }\nx-b: &b { k: 2, m: 2 }\nc: { <<: [*a, *b], l: 3 }\n';
  const { root, errors: found } = parse(text);
  assert.is(found.length, 0);
  assert.equal((toPlain(root!) as { c: unknown }).c, { k: 1, m: 2, l: 3 });
  assert.equal(placeOf(nodeAt(root!, ['c', 'm'])!.origin), { file: '/f.yaml', line: 2, col: 20 });
});

test('a quoted << is a key like any other', () => {
  assert.equal(plain('"<<": 1'), { '<<': 1 });
});

const BROKEN: readonly [name: string, text: string, expected: string][] = [
  ['a duplicate key', 'a: 1\nb: 2\na: 3\n', 'Q4102 3:1'],
  ['a duplicate key deep down', 'a:\n  - { b: 1, b: 2 }\n', 'Q4102 2:13'],
  ['a tab as indentation', 'a:\n\tb: 1\n', 'Q4101 2:1'],
  ['an open bracket', 'a: [1, 2\nb: 3\n', 'Q4101 2:1'],
  ['an open quote', 'a: "x\nb: 3\n', 'Q4101 3:1'],
  ['an unknown alias', 'a: *nobody\n', 'Q4109 1:4'],
  ['an alias to what is around it', 'a: &a\n  b: *a\n', 'Q4109 2:6'],
  ['an alias before its anchor', 'a: *later\nb: &later 1\n', 'Q4109 1:4'],
  ['a merge of a list of numbers', 'a: { <<: [1] }\n', 'Q4104 1:6'],
  ['a merge of a text', 'a: { <<: x }\n', 'Q4104 1:6'],
  ['two documents', 'a: 1\n---\nb: 2\n', 'Q4101 2:1'],
  ['an unknown tag', 'a: !python/object x\n', 'Q4101 1:4'],
  ['nothing', '', 'Q4101 1:1'],
  ['only a comment', '# nothing\n', 'Q4101 1:1'],
  ['__proto__', '__proto__: { a: 1 }\n', 'Q4103 1:1'],
  ['an integer that loses digits', 'seed: 12345678901234567890\n', 'Q4105 1:7'],
];
for (const [name, text, expected] of BROKEN) {
  test(`located: ${name}`, () => assert.equal(errors(text)[0], expected));
}

test('an alias bomb is refused in a moment', () => {
  const lines = ['a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]'];
  for (let i = 1; i < 12; i++)
    lines.push(
      `a${i}: &a${i} [${Array<string>(9)
        .fill(`*a${i - 1}`)
        .join(', ')}]`,
    );
  const started = performance.now();
  const found = errors(lines.join('\n'));
  assert.is(found.length, 1);
  assert.match(found[0]!, /^Q4109 /);
  assert.ok(performance.now() - started < 3000);
});

test('deep nesting is refused, not a crash', () => {
  for (const depth of [100, 20_000]) {
    const found = errors(`a: ${'['.repeat(depth)}${']'.repeat(depth)}`);
    assert.match(found[0]!, /^Q4101/);
  }
});

test('values of the command line are YAML, never code', () => {
  assert.is(parseValue('3'), 3);
  assert.equal(parseValue('[1, {a: b}]'), [1, { a: 'b' }]);
  assert.is(parseValue('[1'), undefined);
  assert.is(parseValue('*a'), undefined);
});

test.run();
