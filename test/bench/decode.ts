/**
 * Decoding one row with a Qwen3 of some 300 M NVFP4 weights (random, too big for the caches) against the memory-read
 * bandwidth measured in the same run.
 *
 *   node --import tsx test/bench/decode.ts [--build DIR] [--threads N] [--tokens N] [--loops N] [--profile]
 *
 * Bytes a token: codes and scales of every projection and of the head, read once. Method: greedy, 64 tokens of warm-up,
 * then the best of many short decode loops (the read is the best of short pieces too: on a machine that does other
 * things, that is what the code can do); reads measured before and after, the better counts.
 */
import { parseArgs } from 'node:util';
import { openEngine, type Store } from '../../runtime/engine/engine.js';
import {
  cacheTensors,
  decodeProgram,
  defaultStorage,
  initProgram,
  layOutModel,
  modelTensors,
  parseQwen3Config,
} from '../../runtime/models/index.js';
import type { Program } from '../../runtime/program.js';
import { measureCpuProducts } from './cpu-products.js';

const { values } = parseArgs({
  options: {
    build: { type: 'string' },
    threads: { type: 'string', default: '0' },
    tokens: { type: 'string', default: '16' },
    loops: { type: 'string', default: '30' },
    profile: { type: 'boolean', default: false },
  },
});
const threads = Number(values.threads);
const tokens = Number(values.tokens);
const loops = Number(values.loops);
const roof = () =>
  measureCpuProducts({ ...(values.build === undefined ? {} : { build: values.build }), threads, rounds: 6 });

const config = parseQwen3Config(
  {
    architectures: ['Qwen3ForCausalLM'],
    model_type: 'qwen3',
    vocab_size: 50176,
    hidden_size: 1024,
    intermediate_size: 3072,
    num_hidden_layers: 16,
    num_attention_heads: 16,
    num_key_value_heads: 8,
    head_dim: 128,
    rms_norm_eps: 1e-6,
    rope_theta: 1000000,
    max_position_embeddings: 4096,
    tie_word_embeddings: false,
    hidden_act: 'silu',
    attention_bias: false,
  },
  'bench',
);

const engine = openEngine({ device: 'cpu', threads });
const store = engine.createStore();
const storage = defaultStorage(config, { quantize: true, plain: 'f32' });
const model = layOutModel({ config, storage, masters: 'none' });
const common = { model, device: 'cpu', activation: 'f32' } as const;
const cache = { capacity: tokens + 64, rows: 1 };

function allocate(into: Store, { tensors }: Program): void {
  for (const { name, dtype, shape, storage } of tensors)
    if (storage.kind === 'store' && !into.has(storage.name)) into.allocate(name, dtype, shape);
}

const init = initProgram({ ...common, seed: 1, std: 0.02 }).program;
const decode = decodeProgram({ ...common, batch: 1, cache }).program;
for (const { name, dtype, shape } of [...modelTensors(model), ...cacheTensors(config, 'f32', cache)])
  store.allocate(name, dtype, shape);
for (const program of [init, decode]) allocate(store, program);
await engine.load(init, store).run();
store.write('in.sampling', Float32Array.of(0, 0, 1, 0, 1, 0, 0, 0));

const executable = engine.load(decode, store);
async function run(count: number): Promise<number> {
  store.write('in.past', Int32Array.of(0));
  store.write('in.ids', Int32Array.of(1));
  const { seconds } = await executable.decode({ tokens: 'in.ids', maxTokens: count, stopTokens: [] });
  return seconds / count;
}

const before = roof();
await run(64);
const times: number[] = [];
for (let i = 0; i < loops; i++) times.push(await run(tokens));
const after = roof();

const weights = model.parameters.filter(({ weight }) => weight.dtype === 'nvfp4');
const parameters = weights.reduce((sum, { shape }) => sum + shape[0]! * shape[1]!, 0);
const bytes = parameters * (0.5 + 1 / 16);
const seconds = Math.min(...times);
const read = Math.max(before.read_gbs, after.read_gbs);
const products = Math.max(before.matvec_gbs.rows_1, after.matvec_gbs.rows_1);
const rate = (seconds: number): number => bytes / seconds / 1e9;
console.log(`${before.device}, ${before.instructions}, ${before.threads} threads`);
console.log(`${(parameters / 1e6).toFixed(0)} M NVFP4 weights, ${(bytes / 1e6).toFixed(0)} MB a token`);
console.log(`memory read        ${read.toFixed(1)} GB/s`);
console.log(`products alone     ${products.toFixed(1)} GB/s, ${(products / read).toFixed(2)} of the read`);
console.log(`decode loop        ${(1 / seconds).toFixed(1)} tok/s, ${rate(seconds).toFixed(1)} GB/s`);
console.log(`  of the read      ${(rate(seconds) / read).toFixed(2)}  target ≥ 0.75`);

if (values.profile) {
  store.write('in.past', Int32Array.of(Math.min(tokens, 64)));
  const { ops = [] } = await executable.run({ profile: true });
  const byOp = new Map<string, number>();
  for (const { op, seconds } of ops) byOp.set(op, (byOp.get(op) ?? 0) + seconds);
  for (const [op, total] of [...byOp].sort((a, b) => b[1] - a[1]))
    console.log(`${op.padEnd(20)}${(total * 1e3).toFixed(3)} ms`);
}
executable.dispose();
store.dispose();
engine.dispose();
