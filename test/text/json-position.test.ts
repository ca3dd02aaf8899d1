import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { findJsonMistake } from '../../runtime/text/json-position.js';
import { draws } from './shipped.js';

test('names the place of a mistake and what was expected', () => {
  const at = (text: string): [number, number, string] => {
    const mistake = findJsonMistake(text)!;
    return [mistake.line, mistake.col, mistake.expected];
  };
  assert.equal(at(''), [1, 1, 'a value']);
  assert.equal(at('{"a": 1,\n "b" 2}'), [2, 6, "':'"]);
  assert.equal(at('{"a": tru}'), [1, 7, 'a value']);
  assert.equal(at('[1, 2'), [1, 6, "',' or ']'"]);
  assert.equal(at('[1 2]'), [1, 4, "',' or ']'"]);
  assert.equal(at('[1,]'), [1, 4, 'a value']);
  assert.equal(at('{"a":1,}'), [1, 8, 'a key in double quotes']);
  assert.equal(at('{a: 1}'), [1, 2, "a key in double quotes or '}'"]);
  assert.equal(at('{"a": "b\n"}'), [1, 7, 'a value']);
  assert.equal(at('{} {}'), [1, 4, 'the end of the text']);
  assert.equal(at('[01]'), [1, 3, "',' or ']'"]);
  assert.equal(at('"\\x"'), [1, 1, 'a value']);
});

test('finds a mistake exactly where JSON.parse finds one', () => {
  const draw = draws(5);
  const whole = '{"a": [1, -2.5e3, true, null, "x\\u00e9\\n"], "b": {"c": "d", "e": []}}';
  for (let i = 0; i < 3000; i++) {
    const place = draw(whole.length);
    const char = '{}[],:"\\ 0e-tx\n'[draw(15)]!;
    const text = whole.slice(0, place) + (draw(2) ? char : '') + whole.slice(place + draw(3));
    let valid = true;
    try {
      JSON.parse(text);
    } catch {
      valid = false;
    }
    assert.is(findJsonMistake(text) === null, valid, text);
  }
});

test('deep nesting costs no stack', () => {
  assert.is(findJsonMistake('['.repeat(200_000))!.col, 200_001);
  assert.is(findJsonMistake('['.repeat(200_000) + ']'.repeat(200_000)), null);
});

test.run();
