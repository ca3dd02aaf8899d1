/**
 * The gate: compares what the model computes, the way it is used, with another route to the same numbers: a golden file of
 * another implementation, other weights, or another way through our own code.
 */
import { Q4Error } from '../runtime/errors.js';
import type { Engine } from '../runtime/engine/types.js';
import { argmax } from '../runtime/models/parity-metrics.js';
import { judge, type Comparison, type Thresholds, type Verdict } from '../runtime/sessions/comparison.js';
import { readGoldenCase } from '../runtime/sessions/golden.js';
import { InferenceSession } from '../runtime/sessions/inference.js';
import { copyTo, loadBeside } from '../runtime/sessions/load.js';
import type { LoadedModel, PlannedModel } from '../runtime/sessions/model.js';
import {
  joinObservations,
  observeCached,
  observeForward,
  observeTraining,
  type Observation,
  type Watch,
} from '../runtime/sessions/observation.js';
import { permutation } from '../runtime/text/philox.js';
import type { CheckpointRef, Stage, StageContext, StagePlan, StageResult, StageValues } from './context.js';

type Route = 'replay' | 'cache' | 'token-by-token' | 'cpu' | 'reference' | 'train-forward' | 'checkpoint';

interface Params {
  readonly baseline: { readonly golden?: string; readonly route?: Route; readonly weights?: string };
  readonly prompts: readonly string[];
  readonly thresholds: Thresholds;
  readonly report_top_k: number;
  readonly greedy_tokens: number;
}

/** One sequence: a prompt and its greedy continuation. */
interface Sequence {
  readonly ids: Int32Array;
  readonly promptTokens: number;
}

const GREEDY = { temperature: 0, topK: 0, topP: 1, minP: 0, repetitionPenalty: 1, seed: 0 } as const;
async function greedy(
  ctx: StageContext,
  model: LoadedModel,
  prompt: readonly number[],
  tokens: number,
): Promise<number[]> {
  if (tokens === 0) return [];
  const session = new InferenceSession(ctx.engine, model, { rows: 1, capacity: prompt.length + tokens + 1 });
  try {
    const options = { sampling: GREEDY, maxTokens: tokens, stopTokens: [], signal: ctx.signal };
    const { tokens: made } = await session.generate([prompt], options);
    return [...made[0]!];
  } finally {
    session.dispose();
  }
}

/** Prompts as the chat template renders them; models without text get token ids drawn from the seed. */
function promptIds(params: Params, model: LoadedModel, ctx: StageContext): number[][] {
  const { text, layout } = model;
  if (text)
    return params.prompts.map(
      (content) =>
        text.template?.encode([{ role: 'user', content }], { addGenerationPrompt: true }) ??
        text.tokenizer.encodeText(content),
    );
  return params.prompts.map((_, i) => [...permutation(layout.config.vocabSize, ctx.seed, i).slice(0, 32)]);
}

async function sequences(params: Params, model: LoadedModel, ctx: StageContext): Promise<Sequence[]> {
  const made: Sequence[] = [];
  for (const prompt of promptIds(params, model, ctx)) {
    const continuation = await greedy(ctx, model, prompt, params.greedy_tokens);
    made.push({ ids: Int32Array.from([...prompt, ...continuation]), promptTokens: prompt.length });
  }
  return made;
}

/** As the model is used: the prompt in one piece, then token by token on the cache. */
const asUsed = ({ ids, promptTokens }: Sequence): number[] => [
  promptTokens,
  ...Array.from({ length: ids.length - promptTokens }, () => 1),
];

/** Pieces of 1 to 7 tokens, from the seed. */
function randomPieces({ ids }: Sequence, seed: number): number[] {
  const pieces: number[] = [];
  const sizes = permutation(7, seed, ids.length);
  for (let done = 0; done < ids.length; done += pieces[pieces.length - 1]!)
    pieces.push(Math.min(sizes[pieces.length % 7]! + 1, ids.length - done));
  return pieces;
}

/** The baseline's own greedy choice at every step of the continuation is our token. */
function continuesAlike(sequence: Sequence, logits: Float32Array, vocabulary: number): boolean {
  const { ids, promptTokens } = sequence;
  for (let i = promptTokens; i < ids.length; i++)
    if (argmax(logits.subarray((i - 1) * vocabulary, i * vocabulary)) !== ids[i]) return false;
  return true;
}

type Observe = (sequence: Sequence, watch: Watch) => Promise<Observation>;

async function compareRoutes(
  list: readonly Sequence[],
  ours: Observe,
  baseline: Observe,
  vocabulary: number,
): Promise<Comparison> {
  const both = async (watch: Watch): Promise<[Observation[], Observation[]]> => {
    const [a, b]: [Observation[], Observation[]] = [[], []];
    for (const sequence of list) {
      a.push(await ours(sequence, watch));
      b.push(await baseline(sequence, watch));
    }
    return [a, b];
  };
  const [a, b] = await both('hidden-states');
  return {
    ours: joinObservations(a),
    baseline: joinObservations(b),
    greedyMatch: list.every((sequence, i) => continuesAlike(sequence, b[i]!.logits, vocabulary)),
    rows: list.reduce((sum, { ids }) => sum + ids.length, 0),
    inside: async (watch) => {
      const [x, y] = await both(watch);
      return [joinObservations(x), joinObservations(y)];
    },
  };
}

/** A route of our own, as a way to observe one sequence; `close` frees what it opened. */
async function openRoute(
  params: Params,
  model: LoadedModel,
  inputs: StageValues,
  ctx: StageContext,
): Promise<{ baseline: Observe; ours: Observe; close: () => void }> {
  const { engine } = ctx;
  const used: Observe = (s, watch) => observeCached(engine, model, s.ids, asUsed(s), watch);
  const alone = (baseline: Observe, ours = used) => ({ baseline, ours, close: () => undefined });
  const other = (otherEngine: Engine, otherModel: LoadedModel, close: () => void) => ({
    baseline: ((s, watch) => observeCached(otherEngine, otherModel, s.ids, asUsed(s), watch)) as Observe,
    ours: used,
    close,
  });
  const { route, weights } = params.baseline;
  if (weights !== undefined) {
    const loaded = await loadBeside(engine, model, weights);
    return other(engine, loaded, () => loaded.dispose());
  }
  switch (route!) {
    case 'replay':
      return alone((s, watch) => observeForward(engine, model, s.ids, 1, watch));
    case 'cache':
      return alone((s, watch) => observeCached(engine, model, s.ids, randomPieces(s, ctx.seed), watch));
    case 'token-by-token':
      return alone((s, watch) =>
        observeCached(
          engine,
          model,
          s.ids,
          Array.from(s.ids, () => 1),
          watch,
        ),
      );
    case 'train-forward':
      // The same tokens in one piece on both sides: nothing may differ, not even a bit.
      return alone(
        (s, watch) => observeTraining(engine, model, s.ids, watch),
        (s, watch) => observeCached(engine, model, s.ids, [s.ids.length], watch),
      );
    case 'cpu':
    case 'reference': {
      const cpu = ctx.openEngine({ device: 'cpu', reference: route === 'reference' });
      const copy = copyTo(cpu, model);
      return other(cpu, copy, () => {
        copy.dispose();
        cpu.dispose();
      });
    }
    case 'checkpoint': {
      const checkpoint = inputs['checkpoint'] as CheckpointRef | undefined;
      if (!checkpoint)
        throw new Q4Error('Q4502', 'there is no checkpoint to compare with', {
          hint: 'add a checkpoint stage to `needs`',
          at: ['baseline', 'route'],
        });
      const loaded = await loadBeside(engine, model, ctx.files.join(checkpoint.path, 'weights.dat'));
      return other(engine, loaded, () => loaded.dispose());
    }
  }
}

const describeBaseline = ({ golden, route, weights }: Params['baseline']): string =>
  route ?? (golden === undefined ? `weights ${weights}` : `golden ${golden}`);

async function compareGolden(path: string, model: LoadedModel, ctx: StageContext): Promise<Comparison> {
  const golden = await readGoldenCase(ctx.engine.files, path, model.layout.config);
  const { ids, batch, observed, greedy: expected } = golden;
  const made = expected && (await greedy(ctx, model, expected.prompt, expected.continuation.length));
  return {
    ours: await observeForward(ctx.engine, model, ids, batch),
    baseline: observed,
    greedyMatch: made && made.join() === expected.continuation.join(),
    rows: ids.length,
    // The file shows only what leaves a layer. Inside it, our path can be held against the reference path.
    inside: async (watch) => {
      const engine = ctx.openEngine({ device: 'cpu', reference: true });
      const copy = copyTo(engine, model);
      try {
        const ours = await observeForward(ctx.engine, model, ids, batch, watch);
        return [ours, await observeForward(engine, copy, ids, batch, watch)];
      } finally {
        copy.dispose();
        engine.dispose();
      }
    },
  };
}

async function verdictOf(params: Params, inputs: StageValues, ctx: StageContext): Promise<Verdict> {
  const model = inputs['model'] as LoadedModel;
  const { vocabSize } = model.layout.config;
  const decide = (comparison: Comparison): Promise<Verdict> =>
    judge(comparison, params.thresholds, vocabSize, params.report_top_k);
  if (params.baseline.golden !== undefined)
    return decide(await compareGolden(params.baseline.golden, model, ctx));
  const { baseline, ours, close } = await openRoute(params, model, inputs, ctx);
  try {
    return await decide(await compareRoutes(await sequences(params, model, ctx), ours, baseline, vocabSize));
  } finally {
    close();
  }
}

async function run(params: Params, inputs: StageValues, ctx: StageContext): Promise<StageResult> {
  const watch = ctx.stopwatch();
  const { broken, ...verdict } = await verdictOf(params, inputs, ctx);
  const baseline = describeBaseline(params.baseline);
  const thresholds = { ...params.thresholds };
  const outputs = { ...verdict, baseline, thresholds, seconds: watch() } as unknown as StageResult['outputs'];
  ctx.emit({ ev: 'parity', ...outputs });
  if (verdict.passed) return { values: { verdict: outputs }, outputs };
  const at = verdict.first_divergence;
  const where = at ? `; first divergence at ${at.op ?? at.layer}` : '';
  const failure = new Q4Error(
    'Q4601',
    `parity with ${baseline} does not hold: ${broken.join(', ')}${where}`,
    {
      hint: 'report.html shows every layer; `thresholds` holds the bounds',
    },
  );
  return { values: {}, outputs, failure };
}

async function plan(params: Params, inputs: StageValues): Promise<StagePlan> {
  const model = inputs['model'] as PlannedModel;
  const { numHiddenLayers } = model.layout.config;
  return {
    summary: `against ${describeBaseline(params.baseline)}: ${numHiddenLayers + 1} hidden states, logits, greedy tokens`,
    bytes: {},
    values: {},
  };
}

export const parityCheck: Stage<Params> = {
  uses: 'parity-check',
  takes: [['model']],
  mayTake: ['checkpoint'],
  gives: ['verdict'],
  plan,
  run,
};
