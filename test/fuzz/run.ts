/**
 * Fuzzes the tensor file parsers with libFuzzer under the address and undefined-behaviour sanitizers.
 *
 *   npm run test:fuzz -- [--target dat|safetensors] [--seconds N] [--compiler clang++-14]
 *
 * Seeds are the test tables' files, right and wrong. Needs clang with its sanitizer libraries; a finding is kept in the
 * build directory that the last line names.
 */
import { spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { dat, quantised, safetensors, TYPE } from '../native/file-bytes.js';
import { DAT_REFUSALS, SAFETENSORS_REFUSALS } from '../native/refusals.js';

const HERE = dirname(fileURLToPath(import.meta.url));
const NATIVE = join(HERE, '../../native');
const SOURCES = [
  'dat_index',
  'dat_pairs',
  'file_convert',
  'file_error',
  'file_layout',
  'file_names',
  'file_parts',
  'file_source',
  'file_types',
  'safetensors_index',
  'safetensors_json',
  'tensor',
];

const { values: options } = parseArgs({
  options: {
    target: { type: 'string' },
    seconds: { type: 'string', default: '60' },
    compiler: { type: 'string' },
  },
});

function findCompiler(): string {
  const candidates = options.compiler
    ? [options.compiler]
    : ['clang++', 'clang++-18', 'clang++-16', 'clang++-14'];
  const found = candidates.find((name) => spawnSync(name, ['--version']).status === 0);
  if (found === undefined)
    throw new Error(`none of ${candidates.join(', ')} runs; install clang and its libclang-rt`);
  return found;
}

function run(command: string, args: readonly string[], what: string): void {
  const { status, signal } = spawnSync(command, args, { stdio: 'inherit' });
  if (status !== 0) throw new Error(`${what} failed (${signal ?? `exit ${status}`})`);
}

const some = { name: 'n', type: TYPE.f16, shape: [3], payload: 6 };
const header = { a: { dtype: 'F32', shape: [1], data_offsets: [0, 4] }, __metadata__: { format: 'pt' } };

const TARGETS = {
  dat: {
    define: [],
    seeds: [
      ...DAT_REFUSALS.map((r) => r.bytes),
      dat(),
      dat(some, ...quantised('m.weight', 2, 32)),
      dat(some, ...quantised('a.weight', 2, 32), ...quantised('b', 16, 16, false), { ...some, name: '層.w' }),
    ],
  },
  safetensors: {
    define: ['-DQ4_FUZZ_SAFETENSORS'],
    seeds: [...SAFETENSORS_REFUSALS.map((r) => r.bytes), safetensors('{}'), safetensors(header, 4)],
  },
};
type Target = keyof typeof TARGETS;

function fuzz(target: Target, seconds: number): void {
  const build = mkdtempSync(join(tmpdir(), `q4run-fuzz-${target}-`));
  const corpus = join(build, 'corpus');
  mkdirSync(corpus);
  TARGETS[target].seeds.forEach((bytes, i) => writeFileSync(join(corpus, `seed-${i}`), bytes));
  const binary = join(build, `fuzz_${target}`);
  run(
    findCompiler(),
    [
      ...['-std=c++20', '-O1', '-g', '-fno-omit-frame-pointer', '-I', NATIVE, ...TARGETS[target].define],
      ...['-fsanitize=fuzzer,address,undefined', '-fno-sanitize-recover=all'],
      ...[join(HERE, 'fuzz_tensor_files.cpp'), ...SOURCES.map((name) => join(NATIVE, 'core', `${name}.cpp`))],
      ...['-o', binary],
    ],
    'building the fuzzer',
  );
  console.log(`fuzzing ${target} for ${seconds} s in ${build}`);
  // One core. Headers matter, not payloads: short inputs run fast. One that takes 1 GiB or 10 s is a finding too.
  run(
    'nice',
    [
      ...[
        binary,
        corpus,
        `-max_total_time=${seconds}`,
        '-max_len=16384',
        '-rss_limit_mb=1024',
        '-timeout=10',
      ],
      ...['-print_final_stats=1', '-verbosity=1', `-artifact_prefix=${build}/`],
    ],
    `fuzzing ${target}`,
  );
}

const seconds = Number(options.seconds);
if (!(seconds > 0)) throw new Error('--seconds takes a positive number');
const targets =
  options.target === undefined ? (Object.keys(TARGETS) as Target[]) : [options.target as Target];
for (const target of targets) {
  if (!Object.hasOwn(TARGETS, target)) throw new Error(`--target takes ${Object.keys(TARGETS).join(' or ')}`);
  fuzz(target, seconds);
}
