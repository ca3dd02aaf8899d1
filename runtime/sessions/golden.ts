/** Golden files: what another implementation computed (formats.md §5). */
import { Q4Error } from '../errors.js';
import type { FileIndex, TensorFiles } from '../engine/types.js';
import type { Qwen3Config } from '../models/config.js';
import { hiddenStateScopes } from '../models/qwen3.js';
import type { Observation } from './observation.js';

export interface GoldenCase {
  /** [batch, tokens] */
  readonly ids: Int32Array;
  readonly batch: number;
  readonly observed: Observation;
  /** A prompt and its greedy continuation. */
  readonly greedy: { readonly prompt: readonly number[]; readonly continuation: readonly number[] } | null;
}

/** New tokens of a greedy case; what stands before them is the prompt. */
const NEW_TOKENS = 24;

/** @throws Q4Error Q4506 when something is missing or does not fit the model. */
export async function readGoldenCase(
  files: TensorFiles,
  path: string,
  config: Qwen3Config,
): Promise<GoldenCase> {
  const index = await files.indexSafetensors(path);
  const input = await read(files, index, 'input_ids');
  const [batch = 0, tokens = 0] = input.shape;
  mustBe(index, 'input_ids', input.shape, [batch, tokens]);
  const ids = tokenIds(input.data, config.vocabSize, index);
  const logits = await read(files, index, 'logits');
  mustBe(index, 'logits', logits.shape, [batch, tokens, config.vocabSize]);
  const taps = new Map<string, Float32Array>();
  for (const [i, scope] of hiddenStateScopes(config).entries()) {
    const hidden = await read(files, index, `hidden_states.${i}`);
    mustBe(index, `hidden_states.${i}`, hidden.shape, [batch, tokens, config.hiddenSize]);
    taps.set(scope, hidden.data);
  }
  const observed = { taps, logits: logits.data };
  return { ids, batch, observed, greedy: await readGreedy(files, index, config.vocabSize) };
}

async function readGreedy(
  files: TensorFiles,
  index: FileIndex,
  vocabulary: number,
): Promise<GoldenCase['greedy']> {
  if (!index.entries.some(({ name }) => name === 'greedy')) return null;
  const ids = [...tokenIds((await read(files, index, 'greedy')).data, vocabulary, index)];
  const prompt = Math.max(1, ids.length - NEW_TOKENS);
  return { prompt: ids.slice(0, prompt), continuation: ids.slice(prompt) };
}

async function read(
  files: TensorFiles,
  index: FileIndex,
  name: string,
): Promise<{ data: Float32Array; shape: readonly number[] }> {
  const entry = index.entries.find((candidate) => candidate.name === name);
  if (!entry)
    throw new Q4Error('Q4506', `the golden file has no '${name}'`, {
      file: index.path,
      expected: 'input_ids, logits and hidden_states.0, hidden_states.1, …',
      found: index.entries
        .slice(0, 8)
        .map((candidate) => candidate.name)
        .join(', '),
    });
  const data = await files.readEntry(index, name);
  if (entry.type === 'f32') return { data: data as Float32Array, shape: entry.shape };
  if (entry.type === 'i64')
    return { data: Float32Array.from(data as BigInt64Array, Number), shape: entry.shape };
  throw new Q4Error('Q4506', `'${name}' of the golden file is ${entry.type}`, {
    file: index.path,
    entry: name,
    expected: 'f32, or i64 for token ids',
  });
}

const mustBe = (
  index: FileIndex,
  name: string,
  shape: readonly number[],
  expected: readonly number[],
): void => {
  if (shape.join() === expected.join()) return;
  throw new Q4Error('Q4506', `'${name}' of the golden file does not fit the model`, {
    file: index.path,
    entry: name,
    expected: `[${expected.join(', ')}]`,
    found: `[${shape.join(', ')}]`,
  });
};

function tokenIds(values: Float32Array, vocabulary: number, index: FileIndex): Int32Array {
  const wrong = values.find((id) => !(id >= 0 && id < vocabulary));
  if (wrong === undefined) return Int32Array.from(values);
  throw new Q4Error('Q4506', 'the golden file uses a token that the model does not have', {
    file: index.path,
    expected: `ids from 0 to ${vocabulary - 1}`,
    found: String(wrong),
  });
}
