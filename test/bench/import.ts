/**
 * Importing beside copying the source, warm cache, best of several rounds, and the memory that it takes.
 *
 *   node --import tsx test/bench/import.ts [MEGABYTES]
 *
 * The source is bf16 in the shapes of a 4-billion-parameter model (layers of q, k, v, o, gate, up, down). "Copy" is cp of the
 * same file; "copy and sync" is cp and sync, which is what an import does with its result. Copies and imports take turns.
 * Peak memory is that of a process that does nothing but one import.
 */
import { execFileSync, spawnSync } from 'node:child_process';
import { closeSync, mkdtempSync, openSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { openEngine } from '../../runtime/engine/engine.js';
import type { ScaleSearch, TranscodeItem } from '../../runtime/engine/types.js';
import { uniformSource } from '../native/random-values.js';

const ROUNDS = 5;
const SEARCHES: readonly ScaleSearch[] = ['amax', 'four_over_six', 'mse'];
const LAYER: readonly [string, number, number][] = [
  ['self_attn.q_proj', 4096, 2560],
  ['self_attn.k_proj', 1024, 2560],
  ['self_attn.v_proj', 1024, 2560],
  ['self_attn.o_proj', 2560, 4096],
  ['mlp.gate_proj', 9728, 2560],
  ['mlp.up_proj', 9728, 2560],
  ['mlp.down_proj', 2560, 9728],
];

function makeFile(path: string, megabytes: number): void {
  const layerBytes = LAYER.reduce((sum, [, out, inputs]) => sum + out * inputs * 2, 0);
  const layers = Math.max(1, Math.round((megabytes * 1e6) / layerBytes));
  const header: Record<string, object> = {};
  let at = 0;
  for (let layer = 0; layer < layers; layer++)
    for (const [name, out, inputs] of LAYER)
      header[`model.layers.${layer}.${name}.weight`] = {
        dtype: 'BF16',
        shape: [out, inputs],
        data_offsets: [at, (at += out * inputs * 2)],
      };
  const json = Buffer.from(JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(json.length));
  // Normal values with σ = 0.02, some millions of them again and again.
  const uniform = uniformSource(1);
  const values = Float32Array.from(
    { length: 9728 * 256 },
    () => 0.02 * Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform()),
  );
  const bits = new Uint32Array(values.buffer);
  const data = Buffer.from(
    Uint16Array.from(bits, (word) => (word + 0x7fff + ((word >> 16) & 1)) >>> 16).buffer,
  );
  const fd = openSync(path, 'w');
  writeSync(fd, length);
  writeSync(fd, json);
  for (let left = at; left > 0; left -= data.length)
    writeSync(fd, data.subarray(0, Math.min(left, data.length)));
  closeSync(fd);
}

async function importSeconds(source: string, target: string, scales: ScaleSearch): Promise<number> {
  const { files } = openEngine({ device: 'cpu', threads: 1 });
  const started = performance.now();
  const index = await files.indexSafetensors(source);
  const items = index.entries.map((entry): TranscodeItem => {
    const group = entry.name.replace(/\.[qkv]_proj/, '.qkv').replace(/(?:gate|up)_proj/, 'gate_up');
    const value = { plain: { index, entry } };
    return {
      kind: 'quantise',
      name: entry.name,
      shape: entry.shape,
      source: value,
      scales,
      twoLevel: true,
      group,
    };
  });
  const made = await files.transcode(target, 'dat', items);
  await made.commit();
  made.dispose();
  return (performance.now() - started) / 1000;
}

function seconds(work: () => void): number {
  const started = performance.now();
  work();
  return (performance.now() - started) / 1000;
}

async function main(): Promise<void> {
  const directory = mkdtempSync(join(tmpdir(), 'q4run-bench-'));
  const [source, copy, target] = ['source.safetensors', 'copy', 'out.dat'].map((name) =>
    join(directory, name),
  );
  try {
    makeFile(source!, Number(process.argv[2] ?? 1000));
    const bytes = (await openEngine({ device: 'cpu', threads: 1 }).files.indexSafetensors(source!)).fileBytes;
    const best = new Map<string, number>();
    const note = (name: string, took: number): void =>
      void best.set(name, Math.min(best.get(name) ?? Infinity, took));
    for (let round = 0; round < ROUNDS; round++) {
      note(
        'copy',
        seconds(() => execFileSync('cp', [source!, copy!])),
      );
      note(
        'copy and sync',
        seconds(() => {
          execFileSync('cp', [source!, copy!]);
          execFileSync('sync', [copy!]);
        }),
      );
      for (const scales of SEARCHES) note(scales, await importSeconds(source!, target!, scales));
    }
    console.log(`${(bytes / 1e9).toFixed(2)} GB of bf16, best of ${ROUNDS}`);
    for (const [name, took] of best) {
      const share = (of: string): string => `${((100 * best.get(of)!) / took).toFixed(0)} % of ${of}`;
      console.log(
        `${name.padEnd(14)} ${took.toFixed(2)} s  ${(bytes / took / 1e9).toFixed(2)} GB/s  ` +
          (name.startsWith('copy') ? '' : `${share('copy')}, ${share('copy and sync')}`),
      );
    }
    const child = spawnSync(
      process.execPath,
      ['--import', 'tsx', fileURLToPath(import.meta.url), '--once', source!, target!],
      { encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'] },
    );
    console.log(child.stdout.trim());
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

if (process.argv[2] === '--once') {
  await importSeconds(process.argv[3]!, process.argv[4]!, 'amax');
  console.log(`peak resident memory ${(process.resourceUsage().maxRSS / 1024).toFixed(0)} MiB`);
} else await main();
