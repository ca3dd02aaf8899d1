/** Makes a model: from loaded weights, or with random ones from a config alone. */
import { Q4Error } from '../runtime/errors.js';
import type { StoreTensor } from '../runtime/graph/types.js';
import { parseQwen3Config, type Qwen3Config } from '../runtime/models/config.js';
import {
  defaultStorage,
  modelTensors,
  unmatchedPatterns,
  type Masters,
  type Model,
  type ScaleLevel,
} from '../runtime/models/model.js';
import { listParameters } from '../runtime/models/parameters.js';
import { tensorBytes } from '../runtime/program.js';
import { buildFromSeed, buildFromWeights, layOut, type BuildOptions } from '../runtime/sessions/build.js';
import type { LoadedModel, PlannedModel, PlannedWeights, Weights } from '../runtime/sessions/model.js';
import { loadModelText, type ModelText } from '../runtime/text/model-text.js';
import { parseJson } from '../runtime/text/tokenizer-file.js';
import type { Stage, StageContext, StagePlan, StageResult, StageValues } from './context.js';

interface Params {
  readonly init?: {
    readonly config: string;
    readonly tokenizer?: string;
    readonly seed?: number;
    readonly std: number;
    readonly quantize: boolean;
    readonly tie?: boolean;
  };
  readonly masters: Masters;
  readonly freeze: readonly string[];
  readonly global_scale: 'keep' | ScaleLevel;
  readonly shared_global_scale: boolean;
}

const activationOf = (ctx: StageContext): 'f32' | 'bf16' => (ctx.precision === 'bf16' ? 'bf16' : 'f32');

const buildOptions = (params: Params): BuildOptions => ({
  masters: params.masters,
  freeze: params.freeze,
  globalScale: params.global_scale,
  sharedGlobalScale: params.shared_global_scale,
});

function checkParams(params: Params, config: Qwen3Config, fromWeights: boolean): void {
  const [pattern] = unmatchedPatterns(config, params.freeze);
  if (pattern !== undefined)
    throw new Q4Error('Q4502', `freeze names no parameter: '${pattern}'`, {
      expected: 'patterns such as model.layers.0.* or *.q_proj.weight',
      at: ['freeze'],
    });
  const rescales = params.global_scale !== 'keep' || params.shared_global_scale;
  if (fromWeights && rescales && params.masters === 'none')
    throw new Q4Error('Q4502', 'other global scales than the file has can only be made with masters', {
      hint: 'set masters: fp32, or leave global_scale: keep and shared_global_scale: false',
      at: ['masters'],
    });
}

interface Seeded {
  readonly layout: Model;
  readonly config: Qwen3Config;
  readonly configText: string;
}

async function readInit(
  params: Params,
  init: NonNullable<Params['init']>,
  ctx: StageContext,
): Promise<Seeded> {
  const configText = await ctx.files.readText(init.config, 1 << 20);
  const parsed = parseQwen3Config(parseJson(configText, init.config, 'Q4275'), init.config);
  const config = init.tie === undefined ? parsed : { ...parsed, tieWordEmbeddings: init.tie };
  checkParams(params, config, false);
  const storage = defaultStorage(config, { quantize: init.quantize, plain: 'f32' });
  return { layout: layOut(config, storage, buildOptions(params)), config, configText };
}

/** What load-dat took. */
const weightBytes = ({ config, storage }: PlannedWeights): number =>
  listParameters(config).reduce(
    (sum, { name, shape }) => sum + tensorBytes(storage.get(name)!.dtype, shape),
    0,
  );

function bytesByPurpose(layout: Model): { weights: number; masters: number } {
  const sum = (tensors: readonly StoreTensor[], purpose: string): number =>
    tensors
      .filter((tensor) => tensor.purpose === purpose)
      .reduce((bytes, { dtype, shape }) => bytes + tensorBytes(dtype, shape), 0);
  const tensors = modelTensors(layout);
  return { weights: sum(tensors, 'weights'), masters: sum(tensors, 'masters') };
}

async function plan(params: Params, inputs: StageValues, ctx: StageContext): Promise<StagePlan> {
  const { init } = params;
  let layout: Model;
  let readText: PlannedModel['readText'];
  let loaded = 0;
  if (init) {
    const { config, layout: seeded } = await readInit(params, init, ctx);
    layout = seeded;
    readText = () => textFor(init, config, inputs['weights'] as PlannedWeights | undefined, ctx);
  } else {
    const weights = needWeights(inputs) as unknown as PlannedWeights;
    checkParams(params, weights.config, true);
    layout = layOut(weights.config, weights.storage, buildOptions(params));
    readText = weights.readText;
    loaded = weightBytes(weights);
  }
  const model: PlannedModel = { planned: true, layout, activation: activationOf(ctx), readText };
  const from = init ? `random weights, std ${init.std}` : 'loaded weights';
  const trained = layout.trainable.length;
  const { weights, masters } = bytesByPurpose(layout);
  return {
    summary: `${from}, masters ${params.masters}, ${trained} of ${layout.parameters.length} parameters train`,
    // Loaded weights are there already; plain ones that train become masters.
    bytes: { weights: weights - loaded, masters },
    values: { model },
  };
}

function needWeights(inputs: StageValues): Weights {
  const weights = inputs['weights'] as Weights | undefined;
  if (weights) return weights;
  throw new Q4Error('Q4502', 'build-model needs weights, or init with a config', {
    hint: 'add a load-dat stage to `needs`, or set init: { config: path/to/config.json }',
  });
}

async function run(params: Params, inputs: StageValues, ctx: StageContext): Promise<StageResult> {
  const model = params.init
    ? await fromInit(params, params.init, inputs, ctx)
    : await fromWeights(params, needWeights(inputs), ctx);
  const { layout } = model;
  return {
    values: { model },
    outputs: {
      parameters: layout.parameters.length,
      trainable: layout.trainable.length,
      quantised: layout.parameters.filter(({ storage }) => storage.dtype === 'nvfp4').length,
      masters: layout.masters,
      bytes: model.store.bytes,
    },
  };
}

function fromWeights(params: Params, weights: Weights, ctx: StageContext): Promise<LoadedModel> {
  checkParams(params, weights.config, true);
  return buildFromWeights(ctx.engine, weights, buildOptions(params), activationOf(ctx));
}

async function fromInit(
  params: Params,
  init: NonNullable<Params['init']>,
  inputs: StageValues,
  ctx: StageContext,
): Promise<LoadedModel> {
  const { layout, config, configText } = await readInit(params, init, ctx);
  const text = await textFor(init, config, inputs['weights'] as Weights | undefined, ctx);
  const random = { seed: init.seed ?? ctx.seed, std: init.std };
  return buildFromSeed(ctx.engine, layout, random, { configText, text, activation: activationOf(ctx) });
}

/** The tokenizer named, the one beside the config, or that of the weights that another stage loaded. */
async function textFor(
  init: NonNullable<Params['init']>,
  config: Qwen3Config,
  weights: Pick<PlannedWeights, 'readText'> | Pick<Weights, 'text'> | undefined,
  ctx: StageContext,
): Promise<ModelText | null> {
  const beside = init.config.replace(/[^/\\]*$/, 'tokenizer.json');
  const path = init.tokenizer ?? ((await ctx.files.exists(beside)) ? beside : null);
  if (path !== null) return loadModelText(ctx.files, path, config.vocabSize);
  if (!weights) return null;
  const text = 'readText' in weights ? await weights.readText() : weights.text;
  return text && text.tokenizer.vocabSize <= config.vocabSize ? text : null;
}

export const buildModel: Stage<Params> = {
  uses: 'build-model',
  takes: [],
  mayTake: ['weights'],
  gives: ['model'],
  plan,
  run,
};
