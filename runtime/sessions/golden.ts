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
  // One sequence or more of one token or more: whatever else stands there is not [batch, tokens].
  mustBe(index, 'input_ids', input.shape, [Math.max(1, batch), Math.max(1, tokens)]);
  const ids = tokenIds(input.data, 'input_ids', config.vocabSize, index);
  const logits = await read(files, index, 'logits');
  mustBe(index, 'logits', logits.shape, [batch, tokens, config.vocabSize]);
  const taps = new Map<string, Float32Array>();
  const scopes = hiddenStateScopes(config);
  mustHaveNoMoreLayers(index, scopes.length);
  for (const [i, scope] of scopes.entries()) {
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
  const { data, shape } = await read(files, index, 'greedy');
  mustBe(index, 'greedy', shape, [1, Math.max(2, shape[1] ?? 0)]);
  const ids = [...tokenIds(data, 'greedy', vocabulary, index)];
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

/** A case of a deeper model would agree as far as this one goes. */
function mustHaveNoMoreLayers(index: FileIndex, states: number): void {
  const beyond = index.entries.find(
    ({ name }) => Number(/^hidden_states\.([0-9]+)$/.exec(name)?.[1]) >= states,
  );
  if (!beyond) return;
  throw new Q4Error('Q4506', `the golden file has '${beyond.name}', but the model has ${states - 1} layers`, {
    file: index.path,
    entry: beyond.name,
    expected: `hidden_states.0 to hidden_states.${states - 1}`,
    found: beyond.name,
  });
}

function tokenIds(values: Float32Array, name: string, vocabulary: number, index: FileIndex): Int32Array {
  const wrong = values.find((id) => !(Number.isInteger(id) && id >= 0 && id < vocabulary));
  if (wrong === undefined) return Int32Array.from(values);
  throw new Q4Error('Q4506', `'${name}' of the golden file holds a token that the model does not have`, {
    file: index.path,
    entry: name,
    expected: `whole numbers from 0 to ${vocabulary - 1}`,
    found: String(wrong),
  });
}
