/** Builds and runs the native measurement of the CPU's roofs and products (cpu_products.cpp). */
import { spawnSync } from 'node:child_process';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const ROOT = join(dirname(fileURLToPath(import.meta.url)), '..', '..');

export interface CpuProducts {
  readonly device: string;
  readonly instructions: string;
  readonly threads: number;
  /** Fused multiply-adds in registers, all threads; 0 where it was not measured. */
  readonly peak_gflops: number;
  /** 1024³ products; `openblas` only where the library is installed. */
  readonly gflops: {
    readonly fp32: number;
    readonly nvfp4: number;
    readonly fp32_dgrad: number;
    readonly nvfp4_dgrad: number;
    readonly wgrad: number;
    readonly openblas?: number;
  };
  /** Reading 256 MB, all threads. */
  readonly read_gbs: number;
  readonly matvec_parameters: number;
  /** Bytes of NVFP4 codes and scales per second, for products with 1, 2, 4 and 8 rows. */
  readonly matvec_gbs: Readonly<Record<'rows_1' | 'rows_2' | 'rows_4' | 'rows_8', number>>;
}

function command(program: string, args: readonly string[]): string {
  const { status, stdout, stderr, error } = spawnSync(program, args, { cwd: ROOT, encoding: 'utf8' });
  if (status !== 0)
    throw new Error(`${program} ${args.join(' ')} failed: ${error?.message ?? stderr}\n${stdout}`);
  return stdout;
}

/** `build` is a configured CMake folder; by default the one that `npm run build:native` leaves. */
export function measureCpuProducts(
  options: { build?: string; threads?: number; rounds?: number } = {},
): CpuProducts {
  const { build = join(ROOT, 'build'), threads = 0, rounds = 10 } = options;
  command('cmake', ['--build', build, '--target', 'q4bench_cpu', '--config', 'Release']);
  return JSON.parse(command(join(build, 'q4bench_cpu'), [String(threads), String(rounds)])) as CpuProducts;
}
