/** `q4run check` on a pipeline, cold: a new process every time, by the wall clock. Target: under 400 ms. */
import { spawnSync } from 'node:child_process';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const ROOT = join(dirname(fileURLToPath(import.meta.url)), '..', '..');
const CLI = join(ROOT, 'dist', 'runtime', 'runner', 'cli.js');
const RUNS = 9;

const wall: number[] = [];
for (let i = 0; i < RUNS; i++) {
  const began = performance.now();
  const { status } = spawnSync(process.execPath, [CLI, 'check', join(ROOT, 'pipelines', 'train-full.yaml')]);
  wall.push(performance.now() - began);
  if (status !== 0) throw new Error(`q4run check ended with ${status}`);
}
wall.sort((a, b) => a - b);
console.log(
  `q4run check, ${RUNS} processes: ${wall[0]!.toFixed(0)} ms least, ${wall[RUNS >> 1]!.toFixed(0)} ms median, ${wall[RUNS - 1]!.toFixed(0)} ms most  target < 400 ms`,
);
