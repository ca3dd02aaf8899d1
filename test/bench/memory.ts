/**
 * Planned memory against what training then uses, on a model of some 110 million parameters with random weights: the device
 * memory that the runtime held, and the resident memory of the whole worker less that of one that has done nothing.
 */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const ROOT = join(dirname(fileURLToPath(import.meta.url)), '..', '..');
const CLI = join(ROOT, 'dist', 'runtime', 'runner', 'cli.js');
const CONFIG = {
  architectures: ['Qwen3ForCausalLM'],
  model_type: 'qwen3',
  vocab_size: 32768,
  hidden_size: 768,
  intermediate_size: 2304,
  num_hidden_layers: 8,
  num_attention_heads: 12,
  num_key_value_heads: 4,
  head_dim: 64,
  hidden_act: 'silu',
  max_position_embeddings: 4096,
  rms_norm_eps: 1e-6,
  rope_theta: 1e6,
  tie_word_embeddings: false,
};

interface Report {
  memory: { peak_rss_bytes: number };
  stages: { uses: string; outputs: { planned_memory_bytes: number; peak_memory_bytes: number } }[];
}

const folder = mkdtempSync(join(tmpdir(), 'q4run-memory-'));
const run = (name: string, ...settings: string[]): Report => {
  const directory = join(folder, name);
  const sets = settings.flatMap((setting) => ['--set', setting]);
  const pipeline = join(ROOT, 'pipelines', name === 'idle' ? 'infer.yaml' : 'one-step.yaml');
  const { status, stderr } = spawnSync(process.execPath, [
    CLI,
    pipeline,
    ...sets,
    '--run-dir',
    directory,
    '--set',
    'runtime.device=cpu',
  ]);
  if (status !== 0) throw new Error(stderr.toString());
  return JSON.parse(readFileSync(join(directory, 'report.json'), 'utf8')) as Report;
};

try {
  writeFileSync(join(folder, 'config.json'), JSON.stringify(CONFIG));
  const idle = run('idle').memory.peak_rss_bytes;
  const report = run(
    'train',
    `model.init.config=${join(folder, 'config.json')}`,
    'train.steps=2',
    'train.profile=false',
  );
  const { planned_memory_bytes: planned, peak_memory_bytes: used } = report.stages.find(
    ({ uses }) => uses === 'train',
  )!.outputs;
  const resident = report.memory.peak_rss_bytes - idle;
  const mib = (bytes: number): string => `${(bytes / 2 ** 20).toFixed(0)} MiB`;
  const off = (bytes: number): string => `${((bytes / planned - 1) * 100).toFixed(1)} %`;
  console.log(`planned ${mib(planned)}`);
  console.log(`device memory held ${mib(used)}: ${off(used)} off  target within 5 %`);
  console.log(`resident memory of the worker ${mib(resident)} over an idle one: ${off(resident)} off`);
} finally {
  rmSync(folder, { recursive: true, force: true });
}
