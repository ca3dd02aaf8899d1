/** The same tokens through different routes: hidden states, logits and ops' outputs to compare (the parity gate). */
import type { Engine, NumericArray } from '../engine/types.js';
import { lower, type Lowered } from '../graph/lower.js';
import { linearInto } from '../graph/ops/linear.js';
import { Recorder } from '../graph/recorder.js';
import { forwardProgram } from '../models/forward-program.js';
import { hiddenStateScopes } from '../models/qwen3.js';
import { trainProgram } from '../models/train-program.js';
import { ProgramHost } from './host.js';
import type { LoadedModel } from './model.js';

export interface Observation {
  /** By scope, in the order of the wiring: f32 [rows, width]. */
  readonly taps: ReadonlyMap<string, Float32Array>;
  /** f32 [rows, V] */
  readonly logits: Float32Array;
}

/** What to keep: the hidden states between layers, or everything inside some scope. */
export type Watch = 'hidden-states' | { readonly inside: string };

const PREFIX = 'observe/';

const patternsOf = (model: LoadedModel, watch: Watch): string[] =>
  watch === 'hidden-states' ? hiddenStateScopes(model.layout.config) : [`${watch.inside}.*`];

/** 16-bit activations as f32. */
export function toFloats(values: NumericArray, dtype: string): Float32Array {
  if (dtype !== 'bf16') return values as Float32Array;
  const bits = Uint32Array.from(values as Uint16Array, (half) => half << 16);
  return new Float32Array(bits.buffer);
}

/** Taps of a program that has run, in the order in which its ops made them. */
function readTaps(model: LoadedModel, lowered: Lowered): Map<string, Float32Array> {
  const madeAt = new Map<string, number>();
  lowered.program.ops.forEach(({ outputs }, at) => {
    for (const index of outputs) {
      const storage = lowered.program.tensors[index]?.storage;
      if (storage?.kind === 'store' && !madeAt.has(storage.name)) madeAt.set(storage.name, at);
    }
  });
  const ordered = [...lowered.taps].sort(([, a], [, b]) => madeAt.get(a)! - madeAt.get(b)!);
  return new Map(
    ordered.map(([scope, name]) => [scope, toFloats(model.store.read(name), model.store.info(name).dtype)]),
  );
}

/** Positions 0, 1, … of every row of a batch. */
const positionsFrom = (past: number, batch: number, tokens: number): Int32Array =>
  Int32Array.from({ length: batch * tokens }, (_, i) => past + (i % tokens));

/** Everything at once, without a cache: ids [batch, tokens]. */
export async function observeForward(
  engine: Engine,
  model: LoadedModel,
  ids: Int32Array,
  batch: number,
  watch: Watch = 'hidden-states',
): Promise<Observation> {
  const { layout, activation, store } = model;
  const tokens = ids.length / batch;
  const host = new ProgramHost(engine, store);
  try {
    const { run, lowered } = host.get('forward', () =>
      forwardProgram({
        ...{ model: layout, device: engine.device.kind, activation, batch, tokens },
        ...{ prefix: PREFIX, taps: patternsOf(model, watch) },
      }),
    );
    store.write(`${PREFIX}in.ids`, ids);
    store.write(`${PREFIX}in.positions`, positionsFrom(0, batch, tokens));
    await run.run();
    return { taps: readTaps(model, lowered), logits: store.read(`${PREFIX}out.logits`) as Float32Array };
  } finally {
    host.dispose();
  }
}

/** One sequence through the cache, in pieces of the given lengths. */
export async function observeCached(
  engine: Engine,
  model: LoadedModel,
  ids: Int32Array,
  pieces: readonly number[],
  watch: Watch = 'hidden-states',
): Promise<Observation> {
  const { layout, activation, store } = model;
  const host = new ProgramHost(engine, store);
  const cache = { rows: 1, capacity: ids.length, prefix: PREFIX };
  const parts: Observation[] = [];
  try {
    let past = 0;
    for (const tokens of pieces) {
      const prefix = `${PREFIX}${tokens}/`;
      const { run, lowered } = host.get(`piece ${tokens}`, () =>
        forwardProgram({
          ...{ model: layout, device: engine.device.kind, activation, batch: 1, tokens },
          ...{ prefix, cache, taps: patternsOf(model, watch) },
        }),
      );
      store.write(`${prefix}in.ids`, ids.slice(past, past + tokens));
      store.write(`${prefix}in.positions`, positionsFrom(past, 1, tokens));
      store.write(`${prefix}in.past`, Int32Array.of(past));
      await run.run();
      parts.push({
        taps: readTaps(model, lowered),
        logits: store.read(`${prefix}out.logits`) as Float32Array,
      });
      past += tokens;
    }
    return joinObservations(parts);
  } finally {
    host.dispose();
  }
}

/** The forward half of the training program, gradients and all; the logits are made from its last hidden state. */
export async function observeTraining(
  engine: Engine,
  model: LoadedModel,
  ids: Int32Array,
  watch: Watch = 'hidden-states',
): Promise<Observation> {
  const { layout, activation, store } = model;
  const tokens = ids.length;
  const device = engine.device.kind;
  const host = new ProgramHost(engine, store);
  const last = 'model';
  try {
    const { run, lowered } = host.get('train', () =>
      trainProgram({
        ...{ model: layout, device, activation, batch: 1, tokens, accumulate: false },
        ...{ prefix: PREFIX, taps: [...patternsOf(model, watch), last], lossTensor: `${PREFIX}loss` },
      }),
    );
    store.write(`${PREFIX}in.ids`, ids);
    store.write(`${PREFIX}in.positions`, positionsFrom(0, 1, tokens));
    store.write(`${PREFIX}in.attend_from`, new Int32Array(tokens));
    store.write(
      `${PREFIX}in.labels`,
      Int32Array.from(ids, (_, i) => ids[i + 1] ?? -100),
    );
    store.write(`${PREFIX}in.loss_scale`, Float32Array.of(1 / Math.max(1, tokens - 1)));
    await run.run();
    const hidden = lowered.taps.get(last)!;
    const head = host.get('head', () => headProgram(engine, model, hidden, tokens));
    await head.run.run();
    const taps = readTaps(model, lowered);
    if (watch === 'hidden-states') taps.delete(last);
    return { taps, logits: store.read(`${PREFIX}out.logits`) as Float32Array };
  } finally {
    host.dispose();
  }
}

function headProgram(engine: Engine, model: LoadedModel, hidden: string, rows: number): Lowered {
  const { layout, activation } = model;
  const { vocabSize, hiddenSize, tieWordEmbeddings } = layout.config;
  const name = tieWordEmbeddings ? 'model.embed_tokens.weight' : 'lm_head.weight';
  const at = Recorder.start(engine.device.kind, activation);
  const x = at.stored({ name: hidden, dtype: activation, shape: [rows, hiddenSize], purpose: 'taps' });
  const weight = at.stored(layout.parameters.find((parameter) => parameter.name === name)!.weight);
  const logits = at.stored({
    name: `${PREFIX}out.logits`,
    dtype: 'f32',
    shape: [rows, vocabSize],
    purpose: 'io',
  });
  linearInto(weight, logits)(x, at.at('lm_head'));
  return lower(at.finish('head'));
}

/** Observations of consecutive rows as one. */
export function joinObservations(parts: readonly Observation[]): Observation {
  const scopes = [...(parts[0]?.taps.keys() ?? [])];
  return {
    taps: new Map(scopes.map((scope) => [scope, concatenate(parts.map(({ taps }) => taps.get(scope)!))])),
    logits: concatenate(parts.map(({ logits }) => logits)),
  };
}

function concatenate(parts: readonly Float32Array[]): Float32Array {
  const whole = new Float32Array(parts.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}
