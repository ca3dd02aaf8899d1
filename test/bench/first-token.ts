/**
 * From the `.dat` of the Qwen3-4B shape, warm in the page cache, to the first token: the whole `q4run` command as built
 * (dist/), timed from its start to the moment its first `token` event is read, and where that time went.
 *
 *   node --import tsx test/bench/first-token.ts [--device cuda] [--layers N] [--rounds N] [--folder DIR]
 *
 * With --folder the model is kept there, and used again the next time.
 *
 * Method: random NVFP4 projections and head, fp16 embedding, written to a temporary folder by q4run's own writer; the
 * shipped tokenizer, into whose printable characters the head's other rows, which are zero, force every answer. One round
 * to warm up, then the median of the rounds; every line of the breakdown is a median of its own.
 */
import { spawn } from 'node:child_process';
import { randomFillSync } from 'node:crypto';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { openEngine } from '../../runtime/engine/engine.js';
import type { WriteItem } from '../../runtime/engine/types.js';
import { parseQwen3Config } from '../../runtime/models/config.js';
import { listParameters } from '../../runtime/models/parameters.js';
import { elementCount } from '../../runtime/program.js';
import type { RunEvent } from '../../runtime/runner/events/event.js';

const ROOT = dirname(dirname(dirname(fileURLToPath(import.meta.url))));
const CLI = join(ROOT, 'dist', 'runtime', 'runner', 'cli.js');
const FIXTURE = join(ROOT, 'test', 'fixtures', 'qwen3-4b.config.json');
const TOKENIZER = join(ROOT, 'pipelines', 'assets', 'qwen3-tiny');
const LIMIT_S = 3;
/** Tokens of one printable character each: the byte-level alphabet begins with them. */
const PRINTABLE = 94;
const BLOCK = 16;

/** Bytes of one random megabyte, again and again: content does not matter, but it is neither zeros nor NaN. */
const pattern = randomFillSync(new Uint8Array(1 << 20));
function randomBytes(length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  for (let at = 0; at < length; at += pattern.length) bytes.set(pattern.subarray(0, length - at), at);
  return bytes;
}
/** ±2^-6 to ±2^-5. */
function randomHalves(length: number): Uint16Array {
  const bytes = randomBytes(length * 2);
  const halves = new Uint16Array(bytes.buffer);
  for (let i = 0; i < length; i++) halves[i] = (halves[i]! & 0x83ff) | 0x2400;
  return halves;
}

async function writeModel(folder: string, layers: number | null): Promise<void> {
  const json = JSON.parse(readFileSync(FIXTURE, 'utf8')) as Record<string, unknown>;
  json['tie_word_embeddings'] = false;
  if (layers !== null) json['num_hidden_layers'] = layers;
  writeFileSync(join(folder, 'config.json'), JSON.stringify(json));
  const items: WriteItem[] = [];
  for (const { name, shape, kind } of listParameters(parseQwen3Config(json, FIXTURE))) {
    if (kind === 'norm') {
      items.push({ name, type: 'f32', shape, data: new Float32Array(elementCount(shape)).fill(1) });
    } else if (kind === 'embedding') {
      items.push({ name, type: 'f16', shape, data: randomHalves(elementCount(shape)) });
    } else {
      const [out, inputs] = shape as [number, number];
      const codes = randomBytes((out * inputs) / 2);
      if (kind === 'head') codes.fill(0, (PRINTABLE * inputs) / 2);
      const scales = new Uint8Array((out * inputs) / BLOCK).fill(0x38); // 1
      items.push(
        { name: `${name}.qdata`, type: 'u8', shape: [out, inputs / 2], data: codes },
        { name: `${name}.scale`, type: 'e4m3', shape: [out, inputs / BLOCK], data: scales },
        { name: `${name}.global_scale`, type: 'f32', shape: [1], data: Float32Array.of(0.007) },
      );
    }
  }
  const engine = openEngine({ device: 'cpu' });
  await engine.files.writeDat(null, join(folder, 'model.dat'), items, { beforeItem: () => undefined });
  engine.dispose();
}

const pipeline = (device: string): string => `version: 1
name: first-token
runtime: { device: ${device} }
stages:
  - { id: weights, uses: load-dat, with: { weights: model.dat, config: config.json, tokenizer: "${TOKENIZER}" } }
  - { id: model, uses: build-model, needs: [weights], with: { masters: none } }
  - { id: ask, uses: infer, needs: [model], with: { prompts: ["What is the capital of Japan?"], max_tokens: 4, temperature: 0 } }
`;

/** What the command had done by when, in seconds since it was started. */
type Milestones = ReadonlyMap<string, number>;

const MILESTONES: readonly (readonly [string, (event: RunEvent) => boolean])[] = [
  ['command read, worker started', ({ ev }) => ev === 'run-start'],
  ['addon loaded, device opened', ({ ev }) => ev === 'device'],
  ['planned', ({ ev }) => ev === 'plan'],
  ['weights loaded', ({ ev, stage }) => ev === 'stage-end' && stage === 'weights'],
  ['model built', ({ ev, stage }) => ev === 'stage-end' && stage === 'model'],
  ['programs built, prompt in the cache, first token', ({ ev }) => ev === 'token'],
];

function ask(folder: string, run: string): Promise<Milestones> {
  return new Promise((resolve, reject) => {
    const startedAt = Date.now();
    const started = performance.now();
    const child = spawn(process.execPath, [CLI, 'p.yaml', '--run-dir', run, '--json'], {
      cwd: folder,
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    const times = new Map<string, number>();
    let [rest, errors, seen] = ['', '', 0];
    child.stderr.setEncoding('utf8').on('data', (text: string) => (errors += text));
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      const lines = (rest + text).split('\n');
      rest = lines.pop()!;
      for (const line of lines) {
        const event = JSON.parse(line) as RunEvent;
        const next = MILESTONES[seen];
        if (next === undefined || !next[1](event)) continue;
        seen += 1;
        // The last by the clock here, when it is read; the others by the clock of the event.
        const last = seen === MILESTONES.length;
        times.set(next[0], last ? (performance.now() - started) / 1000 : (event.t - startedAt) / 1000);
      }
    });
    child.on('error', reject);
    child.on('close', (code) => {
      times.set('process ended', (performance.now() - started) / 1000);
      if (code === 0 && seen === MILESTONES.length) resolve(times);
      else reject(new Error(`exit ${code} after ${seen} milestones\n${errors}`));
    });
  });
}

const median = (values: readonly number[]): number => [...values].sort((a, b) => a - b)[values.length >> 1]!;

const { values } = parseArgs({
  options: {
    device: { type: 'string', default: 'cuda' },
    layers: { type: 'string' },
    rounds: { type: 'string', default: '3' },
    folder: { type: 'string' },
  },
});
if (!existsSync(CLI)) throw new Error(`${CLI} is missing: npm run build:ts`);
const folder = values.folder ?? mkdtempSync(join(tmpdir(), 'q4run-first-token-'));
if (values.folder === undefined) process.on('exit', () => rmSync(folder, { recursive: true, force: true }));
mkdirSync(folder, { recursive: true });
writeFileSync(join(folder, 'p.yaml'), pipeline(values.device));
const path = join(folder, 'model.dat');
if (!existsSync(path)) await writeModel(folder, values.layers === undefined ? null : Number(values.layers));
const runs = mkdtempSync(join(tmpdir(), 'q4run-first-token-runs-'));
process.on('exit', () => rmSync(runs, { recursive: true, force: true }));
console.log(`${path.split('/').pop()}: ${(statSync(path).size / 1e9).toFixed(2)} GB`);
await ask(folder, join(runs, 'warm'));
const rounds: Milestones[] = [];
for (let i = 0; i < Number(values.rounds); i++) rounds.push(await ask(folder, join(runs, `${i}`)));
let before = 0;
for (const name of rounds[0]!.keys()) {
  const at = median(rounds.map((times) => times.get(name)!));
  console.log(`${name.padEnd(50)} ${at.toFixed(3).padStart(7)} s  + ${(at - before).toFixed(3)}`);
  before = at;
}
const first = median(rounds.map((times) => times.get(MILESTONES.at(-1)![0])!));
console.log(
  `first token after ${first.toFixed(2)} s (${first < LIMIT_S ? 'under' : 'NOT under'} ${LIMIT_S} s)`,
);
process.exitCode = values.layers === undefined && first >= LIMIT_S ? 1 : 0;
