/** Reads a `.dat`, its config.json and its tokenizer: everything is checked before memory is taken. */
import type { FileIndex } from '../runtime/engine/types.js';
import { parseQwen3Config, type Qwen3Config } from '../runtime/models/config.js';
import { listParameters } from '../runtime/models/parameters.js';
import type { WeightStorage } from '../runtime/models/model.js';
import { elementCount, tensorBytes } from '../runtime/program.js';
import { loadWeights } from '../runtime/sessions/load.js';
import type { Origin, PlannedWeights, Weights } from '../runtime/sessions/model.js';
import { matchWeights, type MatchedWeights } from '../runtime/sessions/weight-file.js';
import { loadModelText, type ModelText } from '../runtime/text/model-text.js';
import { parseJson } from '../runtime/text/tokenizer-file.js';
import type { Stage, StageContext, StagePlan, StageResult } from './context.js';

interface Params {
  readonly weights: string;
  readonly config?: string;
  readonly tokenizer?: string;
  readonly strict: boolean;
  readonly verify: boolean;
  readonly allow_non_finite: boolean;
}

interface Opened {
  readonly index: FileIndex;
  readonly configText: string;
  readonly matched: MatchedWeights;
}

const folderOf = (path: string): string => path.replace(/[^/\\]*$/, '') || '.';

async function open(params: Params, ctx: StageContext): Promise<Opened> {
  const path = params.config ?? ctx.files.join(folderOf(params.weights), 'config.json');
  const configText = await ctx.files.readText(path, 1 << 20);
  const config = parseQwen3Config(parseJson(configText, path, 'Q4275'), path);
  const index = await ctx.engine.files.indexDat(params.weights);
  return { index, configText, matched: matchWeights(config, index, params.strict) };
}

/** Weights with their dtypes as they are held, of the parameters that a file has. */
const storageOf = (origin: ReadonlyMap<string, Origin>): Map<string, WeightStorage> =>
  new Map([...origin].map(([name, { storage }]) => [name, storage]));

function weightBytes(config: Qwen3Config, origin: ReadonlyMap<string, Origin>): number {
  let bytes = 0;
  for (const { name, shape } of listParameters(config)) {
    const found = origin.get(name);
    if (found) bytes += tensorBytes(found.storage.dtype, shape);
  }
  return bytes;
}

async function plan(params: Params, _: unknown, ctx: StageContext): Promise<StagePlan> {
  const { index, matched } = await open(params, ctx);
  const { config, origin } = matched;
  const weights: PlannedWeights = {
    planned: true,
    config,
    storage: storageOf(origin),
    readText: () => findText(params, config, ctx),
  };
  return {
    summary: `${index.entries.length} entries, ${origin.size} parameters, ${config.numHiddenLayers} layers`,
    bytes: { weights: weightBytes(config, origin) },
    values: { weights },
  };
}

async function run(params: Params, _: unknown, ctx: StageContext): Promise<StageResult> {
  const { index, configText, matched } = await open(params, ctx);
  const { config, origin } = matched;
  const text = await findText(params, config, ctx);
  const { store, loaded } = await loadWeights(ctx.engine, index, matched, {
    allowNonFinite: params.allow_non_finite || !params.verify,
    onProgress: (done, total) => ctx.emit({ ev: 'progress', done, total, unit: 'bytes' }),
    signal: ctx.signal,
  });
  const weights: Weights = {
    config,
    configText,
    origin,
    store,
    text,
    path: params.weights,
    dispose: () => store.dispose(),
  };
  const quantised = [...origin.values()].filter(({ storage }) => storage.dtype === 'nvfp4').length;
  return {
    values: { weights },
    outputs: {
      entries: index.entries.length,
      parameters: listParameters(config).reduce((sum, { shape }) => sum + elementCount(shape), 0),
      quantised_tensors: quantised,
      single_level_tensors: matched.singleLevel.length,
      tied: config.tieWordEmbeddings,
      bytes: loaded.bytes,
      seconds: loaded.seconds,
      bytes_per_second: loaded.seconds > 0 ? loaded.bytes / loaded.seconds : 0,
      scale_blocks: loaded.scaleBlocks,
      // Blocks at the predecessor's clamp of 2^-6 have lost precision: formats.md §2.
      floor_blocks: loaded.floorBlocks,
      vocabulary: text?.tokenizer.vocabSize ?? null,
    },
  };
}

/** The tokenizer named, or the one beside the weights if there is one: token ids alone need none. */
async function findText(params: Params, config: Qwen3Config, ctx: StageContext): Promise<ModelText | null> {
  const beside = ctx.files.join(folderOf(params.weights), 'tokenizer.json');
  const path = params.tokenizer ?? ((await ctx.files.exists(beside)) ? beside : null);
  return path === null ? null : loadModelText(ctx.files, path, config.vocabSize);
}

export const loadDat: Stage<Params> = { uses: 'load-dat', takes: [], gives: ['weights'], plan, run };
