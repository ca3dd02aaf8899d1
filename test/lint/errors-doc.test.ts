import { readFileSync } from 'node:fs';
import { test } from 'uvu';
import * as assert from 'uvu/assert';

import { ERROR_CODES } from '../../runtime/error-codes.js';
import { ERRORS_DOC, errorsPage } from './errors-doc.js';

test('doc/errors.md is the table of error codes', () => {
  assert.is(readFileSync(ERRORS_DOC, 'utf8'), errorsPage());
});

test('the table is sorted, and each code has an exit code of its range, or 1 for our bugs', () => {
  const codes = Object.keys(ERROR_CODES);
  assert.equal(codes, [...codes].sort());
  const exits: Record<string, number[]> = {
    Q40: [2],
    Q41: [3],
    Q42: [4],
    Q43: [4, 5],
    Q44: [4],
    Q45: [4, 5],
    Q46: [6],
    Q47: [7, 8, 130, 143],
    Q48: [9],
    Q49: [],
  };
  for (const [code, { exit }] of Object.entries(ERROR_CODES)) {
    assert.ok(exit === 1 || exits[code.slice(0, 3)]?.includes(exit), `${code} exits with ${exit}`);
    assert.ok(errorsPage().includes(`### ${code}: `), `${code} is in no section`);
  }
});

test.run();
