/** q4gpu_test, which holds the op tests. */
import { execFileSync } from 'node:child_process';
import { join } from 'node:path';

import { ROOT } from '../stages/q4run.js';

/** Its path: the one given in Q4RUN_GPU_TEST, or built beside the addon and for the same architectures. */
export function opTestBinary(): string {
  const given = process.env['Q4RUN_GPU_TEST'];
  if (given !== undefined) return given;
  const build = join(ROOT, 'build');
  execFileSync('cmake', ['--build', build, '--target', 'q4gpu_test'], { stdio: 'inherit' });
  return join(build, 'cuda', 'q4gpu_test');
}

export const suitesOf = (binary: string): string[] =>
  execFileSync(binary, ['--list'], { encoding: 'utf8' }).trim().split('\n');
