/** A Qwen3 of a few thousand parameters with every feature of the real ones, for tests that interpret programs. */
import { parseQwen3Config, type Qwen3Config } from '../../runtime/models/config.js';
import {
  defaultStorage,
  layOutModel,
  modelTensors,
  type Model,
  type ModelOptions,
} from '../../runtime/models/model.js';
import type { Lowered } from '../../runtime/graph/lower.js';
import { Machine, normals, randomSource } from '../graph/interpret.js';

export const TINY_JSON = {
  model_type: 'qwen3',
  architectures: ['Qwen3ForCausalLM'],
  vocab_size: 23,
  hidden_size: 16,
  intermediate_size: 32,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  head_dim: 8,
  rms_norm_eps: 1e-6,
  rope_theta: 10000,
  hidden_act: 'silu',
  attention_bias: false,
  tie_word_embeddings: false,
  max_position_embeddings: 64,
};

export const tinyConfig = (changes: object = {}): Qwen3Config =>
  parseQwen3Config({ ...TINY_JSON, ...changes });

export function tinyModel(changes: object = {}, options: Partial<ModelOptions> = {}): Model {
  const config = tinyConfig(changes);
  const storage = defaultStorage(config, { quantize: true, plain: 'f32' });
  return layOutModel({ config, storage, masters: 'fp32', ...options });
}

/** A machine that holds the model with random weights (norms near 1), and what the programs use. */
export function machineFor(model: Model, programs: readonly Lowered[], seed = 1): Machine {
  const machine = new Machine();
  machine.allocate(modelTensors(model));
  for (const { tensors } of programs) machine.allocate(tensors);
  const random = randomSource(seed);
  for (const { weight, kind, shape } of model.parameters) {
    const size = shape.reduce((a, b) => a * b, 1);
    const values = normals(size, kind === 'norm' ? 0.1 : kind === 'embedding' ? 1 : 0.25, random);
    machine.write(weight.name, kind === 'norm' ? values.map((value) => value + 1) : values);
  }
  return machine;
}

export interface Batch {
  readonly ids: number[];
  readonly positions: number[];
  readonly attendFrom: number[];
  readonly labels: number[];
}

/** Rows of random tokens; in the first row two packed samples, some labels do not count. */
export function randomBatch(model: Model, batch: number, tokens: number, seed = 7): Batch {
  const random = randomSource(seed);
  const rows = Array.from({ length: batch * tokens }, (_, row) => row);
  const cut = Math.floor(tokens / 2);
  const packed = (row: number): boolean => row < tokens && row % tokens >= cut;
  return {
    ids: rows.map(() => Math.floor(random() * model.config.vocabSize)),
    positions: rows.map((row) => (packed(row) ? (row % tokens) - cut : row % tokens)),
    attendFrom: rows.map((row) => (packed(row) ? cut : 0)),
    labels: rows.map((row) => (row % 5 === 3 ? -100 : Math.floor(random() * model.config.vocabSize))),
  };
}

export function writeBatch(machine: Machine, batch: Batch, scale: number, prefix = ''): void {
  machine.write(`${prefix}in.ids`, batch.ids);
  machine.write(`${prefix}in.positions`, batch.positions);
  machine.write(`${prefix}in.attend_from`, batch.attendFrom);
  if (machine.store.has(`${prefix}in.labels`)) machine.write(`${prefix}in.labels`, batch.labels);
  machine.write(`${prefix}in.loss_scale`, [scale]);
}
