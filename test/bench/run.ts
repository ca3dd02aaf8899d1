/**
 * Runs benchmarks one after the other, each in a process of its own, so that none disturbs another.
 *
 *   npm run bench                     all of them
 *   npm run bench -- first-token      those that need a GPU (gpu, first-token) only when they are named
 *   npm run bench -- decode load      some of them; words after `--` of one alone are handed on: npm run bench -- matmul --threads 1
 */
import { spawnSync } from 'node:child_process';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const HERE = dirname(fileURLToPath(import.meta.url));
const ALL = ['check', 'matmul', 'decode', 'load', 'memory', 'import'] as const;
const ON_GPU = ['gpu', 'first-token'] as const;
const KNOWN: readonly string[] = [...ALL, ...ON_GPU];

const words = process.argv.slice(2);
const first = words.findIndex((word) => word.startsWith('-'));
const [names, rest] = first < 0 ? [words, []] : [words.slice(0, first), words.slice(first)];
const unknown = names.filter((name) => !KNOWN.includes(name));
if (unknown.length > 0) {
  console.error(`no benchmark is called ${unknown.join(', ')}; there are ${KNOWN.join(', ')}`);
  process.exit(2);
}
let failed = 0;
for (const name of names.length > 0 ? names : ALL) {
  console.log(`\n== ${name}`);
  const file = join(HERE, `${name}.ts`);
  const { status } = spawnSync(process.execPath, ['--import', 'tsx', file, ...rest], { stdio: 'inherit' });
  if (status !== 0) failed++;
}
process.exit(failed > 0 ? 1 : 0);
