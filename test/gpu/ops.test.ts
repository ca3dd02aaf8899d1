/** Every op of the CUDA backend against the CPU's scalar path. */
import { spawnSync } from 'node:child_process';
import { test } from 'uvu';
import * as assert from 'uvu/assert';

import { opTestBinary, suitesOf } from './op-tests.js';

const binary = opTestBinary();
for (const suite of suitesOf(binary))
  test(`q4gpu_test ${suite}`, () => {
    const { status, signal, stdout, stderr } = spawnSync(binary, ['--only', suite], { encoding: 'utf8' });
    assert.is(status, 0, `${signal ?? `exit ${status}`}\n${stdout}${stderr}`);
    console.log(stdout.trimEnd().split('\n').at(-1));
  });

test.run();
