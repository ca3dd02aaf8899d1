import { execFileSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { test } from 'uvu';
import * as assert from 'uvu/assert';

import { violations, type Source } from './import-law.js';

const ROOT = join(dirname(fileURLToPath(import.meta.url)), '../..');
const SOURCES = /\.(?:ts|cpp|h|cu|cuh)$/;

const sources = (): Source[] =>
  ['runtime', 'stages', 'native'].flatMap((folder) =>
    readdirSync(join(ROOT, folder), { recursive: true, encoding: 'utf8' })
      .filter((path) => SOURCES.test(path))
      .map((path) => `${folder}/${path.replaceAll('\\', '/')}`)
      .map((path) => ({ path, text: readFileSync(join(ROOT, path), 'utf8') })),
  );

test('the sources keep the import law', () => {
  const all = sources();
  assert.ok(all.length > 10);
  assert.equal(violations(all), []);
});

const CASES: readonly [name: string, wrong: Source[]][] = [
  [
    'a stage imports the runner',
    [{ path: 'stages/a.ts', text: `import { x } from '../runtime/runner/cli.js';` }],
  ],
  [
    'a stage imports an engine value',
    [{ path: 'stages/a.ts', text: `import { x } from '../runtime/engine/engine.js';` }],
  ],
  [
    'a stage imports another',
    [
      { path: 'stages/a.ts', text: `import { x } from './b.js';` },
      { path: 'stages/b.ts', text: `export const b = { uses: 'b' };` },
    ],
  ],
  ['a stage reads files', [{ path: 'stages/a.ts', text: `import { readFile } from 'node:fs/promises';` }]],
  ['a stage reads the clock', [{ path: 'stages/a.ts', text: `export const t = () => Date.now();` }]],
  ['the graph rolls dice', [{ path: 'runtime/graph/a.ts', text: `export const t = Math.random();` }]],
  [
    'the graph imports the engine',
    [{ path: 'runtime/graph/a.ts', text: `import type { E } from '../engine/types.js';` }],
  ],
  ['a lazy import', [{ path: 'runtime/engine/a.ts', text: `const x = await import('../runner/cli.js');` }]],
  [
    'the runner loads the addon',
    [{ path: 'runtime/runner/a.ts', text: `require('../../build/q4run_native.node');` }],
  ],
  [
    'a package in two files',
    [
      { path: 'runtime/runner/a.ts', text: `import { parse } from 'yaml';` },
      { path: 'runtime/runner/b.ts', text: `import { stringify } from 'yaml';` },
    ],
  ],
  ['a file outside every room', [{ path: 'runtime/misc.ts', text: '' }]],
  ['core includes a backend', [{ path: 'native/core/a.cpp', text: '#include "cpu/gemm.h"' }]],
  ['a backend includes napi', [{ path: 'native/cuda/a.cu', text: '#include <napi.h>' }]],
  ['the binding includes CUDA', [{ path: 'native/binding/a.cpp', text: '#include <cuda_runtime.h>' }]],
];
for (const [name, wrong] of CASES) test(`refused: ${name}`, () => assert.is(violations(wrong).length, 1));

test('words in comments are not code', () => {
  assert.equal(
    violations([{ path: 'stages/a.ts', text: `// never Date.now()\n/* import 'node:fs' */\n` }]),
    [],
  );
});

test('nothing new stands at the top level', () => {
  const allowed =
    'package.json package-lock.json tsconfig.json pipelines schemas stages runtime native test doc README.md LICENSE';
  const tracked = execFileSync('git', ['ls-files'], { cwd: ROOT, encoding: 'utf8' }).trim().split('\n');
  const top = new Set(tracked.map((path) => path.split('/')[0]!).filter((name) => !name.startsWith('.')));
  assert.equal(
    [...top].filter((name) => !allowed.split(' ').includes(name)),
    [],
  );
});

test.run();
