/**
 * What loading a `.dat` costs beside reading the file, warm cache, best of several rounds, and what stays in memory.
 *
 *   node --import tsx test/bench/load.ts [MEGABYTES]
 *
 * Two readings of "reading": into one small buffer again and again (nothing is kept), and into memory of its own, as a
 * loader must. The process that measures has written nothing, so that its resident memory is the model's.
 */
import { spawnSync } from 'node:child_process';
import { closeSync, mkdtempSync, openSync, readSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { openEngine } from '../../runtime/engine/engine.js';
import type { LoadItem, WriteItem } from '../../runtime/engine/types.js';

const OUT = 2560;
const IN = 9728;
const ROUNDS = 7;

/** Matrices of a 4-billion-parameter model's shape, all of one content. */
async function makeFile(path: string, matrices: number): Promise<void> {
  const codes = Uint8Array.from({ length: (OUT * IN) / 2 }, (_, i) => Math.imul(i, 2654435761) >>> 24);
  const scales = new Uint8Array((OUT * IN) / 16).fill(0x38);
  const items: WriteItem[] = [];
  for (let i = 0; i < matrices; ++i)
    items.push(
      { name: `m${i}.weight.qdata`, type: 'u8', shape: [OUT, IN / 2], data: codes },
      { name: `m${i}.weight.scale`, type: 'e4m3', shape: [OUT, IN / 16], data: scales },
    );
  // One item at a time: the writer copies what it is given.
  await openEngine({ device: 'cpu' }).files.writeDat(null, path, items, { beforeItem: () => undefined });
}

function readSeconds(path: string, buffer: Buffer): number {
  const started = performance.now();
  const fd = openSync(path, 'r');
  let at = 0;
  for (;;) {
    const got = readSync(
      fd,
      buffer,
      at % buffer.length,
      Math.min(4 << 20, buffer.length - (at % buffer.length)),
      null,
    );
    if (got === 0) break;
    at += got;
  }
  closeSync(fd);
  return (performance.now() - started) / 1000;
}

async function loadSeconds(path: string): Promise<{ seconds: number; residentBytes: number }> {
  const engine = openEngine({ device: 'cpu' });
  const store = engine.createStore();
  const started = performance.now();
  const index = await engine.files.indexDat(path);
  const items: LoadItem[] = [];
  for (const { name } of index.entries) {
    const part = name.endsWith('.qdata') ? 'qdata' : 'scale';
    const tensor = name.slice(0, -part.length - 1);
    if (part === 'qdata') store.allocate(tensor, 'nvfp4', [OUT, IN]);
    items.push({ entry: name, tensor, part });
  }
  await engine.files.load(store, index, items);
  const seconds = (performance.now() - started) / 1000;
  const residentBytes = process.memoryUsage.rss();
  store.dispose();
  engine.dispose();
  return { seconds, residentBytes };
}

async function measure(path: string): Promise<void> {
  const bytes = statSync(path).size;
  const small = Buffer.alloc(1 << 20);
  let [load, read, keep, resident] = [Infinity, Infinity, Infinity, 0];
  for (let i = 0; i < ROUNDS; ++i) {
    const result = await loadSeconds(path);
    // The first round's memory: later ones also hold what the baselines took.
    if (i === 0) resident = result.residentBytes;
    load = Math.min(load, result.seconds);
    read = Math.min(read, readSeconds(path, small));
    keep = Math.min(keep, readSeconds(path, Buffer.allocUnsafeSlow(bytes)));
  }
  const mib = (n: number): string => (n / 2 ** 20).toFixed(0);
  const rate = (seconds: number): string =>
    `${seconds.toFixed(3)} s, ${(bytes / 1e9 / seconds).toFixed(1)} GB/s`;
  console.log(`file                       ${mib(bytes)} MiB`);
  console.log(`read, one small buffer     ${rate(read)}`);
  console.log(`read, memory of its own    ${rate(keep)}`);
  console.log(`load                       ${rate(load)}`);
  console.log(
    `load / read                ${(load / read).toFixed(2)} (small buffer), ${(load / keep).toFixed(2)} (own memory)`,
  );
  console.log(
    `resident after loading     ${mib(resident)} MiB: 1.1 × file + ${mib(resident - 1.1 * bytes)} MiB`,
  );
}

const [first = '1024', path] = process.argv.slice(2);
if (first === '--measure' && path !== undefined) {
  await measure(path);
} else {
  const directory = mkdtempSync(join(tmpdir(), 'q4run-bench-'));
  try {
    const file = join(directory, 'model.dat');
    await makeFile(file, Math.max(1, Math.round((Number(first) * 1e6) / ((OUT * IN * 9) / 16))));
    const self = fileURLToPath(import.meta.url);
    const args = [...process.execArgv, self, '--measure', file];
    process.exitCode = spawnSync(process.execPath, args, { stdio: 'inherit' }).status ?? 1;
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}
