/**
 * Matrix products of the CPU backend against the machine's roofs and OpenBLAS, all measured in one run.
 *
 *   node --import tsx test/bench/matmul.ts [--build DIR] [--threads N] [--rounds N]
 *
 * Method: 1024³ in fp32; rounds alternate between all candidates and the best of each counts; the roof is the rate of
 * independent fused multiply-adds in registers on all threads at once.
 */
import { parseArgs } from 'node:util';
import { measureCpuProducts } from './cpu-products.js';

const { values } = parseArgs({
  options: { build: { type: 'string' }, threads: { type: 'string' }, rounds: { type: 'string' } },
});
const result = measureCpuProducts({
  ...(values.build === undefined ? {} : { build: values.build }),
  threads: Number(values.threads ?? 0),
  rounds: Number(values.rounds ?? 10),
});

const { gflops, peak_gflops: peak, read_gbs: read } = result;
const line = (what: string, figure: string, target = ''): void =>
  console.log(`${what.padEnd(34)}${figure.padStart(12)}  ${target}`);
const ratio = (a: number, b: number): string => (a / b).toFixed(2);

console.log(`${result.device}, ${result.instructions}, ${result.threads} threads\n`);
line('FMA peak', `${peak} GFLOP/s`);
line('fp32 1024³', `${gflops.fp32} GFLOP/s`);
if (peak > 0) line('  of the peak', ratio(gflops.fp32, peak), 'target ≥ 0.70');
if (gflops.openblas === undefined) console.log('OpenBLAS not installed');
else {
  line('OpenBLAS sgemm', `${gflops.openblas} GFLOP/s`);
  line('  fp32 / OpenBLAS', ratio(gflops.fp32, gflops.openblas), 'target ≥ 0.85');
}
line('NVFP4 weight 1024³', `${gflops.nvfp4} GFLOP/s`);
line('  NVFP4 / fp32', ratio(gflops.nvfp4, gflops.fp32), 'target ≥ 0.90');
line('dgrad fp32, NVFP4', `${gflops.fp32_dgrad}, ${gflops.nvfp4_dgrad}`);
line('wgrad', `${gflops.wgrad} GFLOP/s`);
console.log();
line('memory read', `${read} GB/s`);
line(
  `${(result.matvec_parameters / 1e6).toFixed(0)} M NVFP4 weights, 1 row`,
  `${result.matvec_gbs.rows_1} GB/s`,
);
line('  of the memory read', ratio(result.matvec_gbs.rows_1, read), 'target ≥ 0.75');
for (const rows of [2, 4, 8] as const) line(`  ${rows} rows`, `${result.matvec_gbs[`rows_${rows}`]} GB/s`);
