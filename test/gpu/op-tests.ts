/** q4gpu_test, which holds the op tests. */
import { execFileSync } from 'node:child_process';
import { join } from 'node:path';

import { ROOT } from '../stages/q4run.js';

const cmake = (...args: string[]): void => void execFileSync('cmake', args, { cwd: ROOT, stdio: 'inherit' });

/** Its path: the one given in Q4RUN_GPU_TEST, or built beside the addon and for the same architectures. */
export function opTestBinary(): string {
  const given = process.env['Q4RUN_GPU_TEST'];
  if (given !== undefined) return given;
  const build = join(ROOT, 'build');
  cmake('--build', build, '--target', 'q4gpu_test');
  return join(build, 'cuda', 'q4gpu_test');
}

/** With source lines and for the GPU of this machine alone, in a build of its own; unless Q4RUN_GPU_TEST names one. */
export function opTestBinaryWithLines(): string {
  const given = process.env['Q4RUN_GPU_TEST'];
  if (given !== undefined) return given;
  const query = ['--query-gpu=compute_cap', '--format=csv,noheader'];
  const capability = execFileSync('nvidia-smi', query, { encoding: 'utf8' })
    .split('\n')[0]!
    .replace('.', '')
    .trim();
  const suffix = capability.startsWith('12') ? 'f' : Number(capability) >= 90 ? 'a' : '';
  const build = join(ROOT, 'build-sanitize');
  cmake('-S', 'native', '-B', build, '-DQ4_LINE_INFO=ON', `-DQ4_CUDA_ARCHS=${capability}${suffix}`);
  cmake('--build', build, '--target', 'q4gpu_test', '--parallel');
  return join(build, 'cuda', 'q4gpu_test');
}

export const suitesOf = (binary: string): string[] =>
  execFileSync(binary, ['--list'], { encoding: 'utf8' }).trim().split('\n');
