/**
 * The native code under address and undefined-behaviour sanitizers: builds the addon with them into build-asan and runs the
 * native, engine and session tests with it. Node itself is not instrumented, so its own leaks are not looked for.
 *
 *   npm run test:asan [-- part of a path …]
 */
import { execFileSync, spawnSync } from 'node:child_process';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const ROOT = join(dirname(fileURLToPath(import.meta.url)), '..', '..');
const BUILD = join(ROOT, 'build-asan');
const DEFAULT_TESTS = ['test/native', 'test/engine', 'test/sessions'];

const run = (command: string, args: readonly string[], env: NodeJS.ProcessEnv = process.env): void => {
  const { status } = spawnSync(command, args, { cwd: ROOT, stdio: 'inherit', env });
  if (status !== 0) process.exit(status ?? 1);
};

run('cmake', [
  ...['-S', 'native', '-B', BUILD, '-DQ4_CUDA=OFF', '-DQ4_SANITIZE=ON', '-DCMAKE_BUILD_TYPE=RelWithDebInfo'],
]);
run('cmake', ['--build', BUILD, '--target', 'q4run_native', '--parallel', '2']);
// The sanitizer's runtime must be there before Node's own allocations.
const runtime = execFileSync('gcc', ['-print-file-name=libasan.so'], { encoding: 'utf8' }).trim();
const names = process.argv.slice(2);
run(
  process.execPath,
  ['--import', 'tsx', 'test/run.ts', '--timeout', '900', ...(names.length > 0 ? names : DEFAULT_TESTS)],
  {
    ...process.env,
    Q4RUN_ADDON: join(BUILD, 'Release', 'q4run_native.node'),
    LD_PRELOAD: runtime,
    ASAN_OPTIONS: 'detect_leaks=0:abort_on_error=1',
    UBSAN_OPTIONS: 'halt_on_error=1:print_stacktrace=1',
  },
);
