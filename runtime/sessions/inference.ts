/**
 * Answers on a preallocated KV cache, one or several conversations (rows) at a time. What is already in the cache is
 * reused: only the tokens after the longest common beginning are computed.
 */
import { Q4Error } from '../errors.js';
import type { DecodeResult, Engine } from '../engine/types.js';
import { planMemory, type MemoryPlan } from '../graph/memory-plan.js';
import type { Lowered } from '../graph/lower.js';
import type { Activation, DeviceKind } from '../graph/types.js';
import { decodeProgram } from '../models/decode-program.js';
import { forwardProgram } from '../models/forward-program.js';
import type { Model } from '../models/model.js';
import { ProgramHost } from './host.js';
import type { LoadedModel } from './model.js';
import { withCosts, type ProfiledOp } from './profile.js';

/** Longest piece of a prompt that is computed at once: bounds the arena, and fills the device. */
const PREFILL_TOKENS: Readonly<Record<DeviceKind, number>> = { cpu: 512, cuda: 4096 };
const PREFIX = 'infer/';

export interface SessionOptions {
  readonly rows: number;
  /** Tokens that each row can hold. */
  readonly capacity: number;
}

export interface Sampling {
  /** 0: the most likely token, always. */
  readonly temperature: number;
  /** 0: all. */
  readonly topK: number;
  readonly topP: number;
  readonly minP: number;
  readonly repetitionPenalty: number;
  readonly seed: number;
}

export interface GenerateOptions {
  readonly sampling: Sampling;
  readonly maxTokens: number;
  readonly stopTokens: readonly number[];
  readonly onToken?: (row: number, token: number) => boolean | void;
  readonly signal?: AbortSignal;
  /** Called when the prompts are in the cache, before the first token. */
  readonly onPrefilled?: () => void;
}

const prefillProgram = (
  model: Model,
  device: DeviceKind,
  activation: Activation,
  options: SessionOptions & { row: number; tokens: number },
): Lowered => {
  const { rows, capacity, row, tokens } = options;
  const cache = { rows, capacity, row, prefix: PREFIX };
  const prefix = `${PREFIX}${tokens}/`;
  return forwardProgram({
    model,
    device,
    activation,
    batch: 1,
    tokens,
    cache,
    logits: 'none',
    prefix,
    name: 'prefill',
  });
};

const decoding = (
  model: Model,
  device: DeviceKind,
  activation: Activation,
  { rows, capacity }: SessionOptions,
  greedy: boolean,
): Lowered =>
  decodeProgram({
    greedy,
    model,
    device,
    activation,
    batch: rows,
    cache: { rows, capacity, prefix: PREFIX },
    prefix: PREFIX,
  });

/** Device bytes of a session beside the model's weights. */
export function planInference(
  model: Model,
  device: DeviceKind,
  activation: Activation,
  options: SessionOptions,
): MemoryPlan {
  const tokens = Math.min(PREFILL_TOKENS[device], options.capacity);
  return planMemory([
    decoding(model, device, activation, options, false),
    prefillProgram(model, device, activation, { ...options, row: 0, tokens }),
  ]);
}

export class InferenceSession {
  readonly #host: ProgramHost;
  private readonly device: DeviceKind;
  /** Tokens whose keys and values each row's cache holds. */
  readonly #cached: number[][];

  constructor(
    engine: Engine,
    private readonly model: LoadedModel,
    private readonly options: SessionOptions,
  ) {
    this.device = engine.device.kind;
    this.#host = new ProgramHost(engine, model.store);
    this.#cached = Array.from({ length: options.rows }, () => []);
    const { layout, activation } = model;
    const { device } = this;
    this.#decode = () =>
      this.#host.get(this.#greedy ? 'decode greedily' : 'decode', () =>
        decoding(layout, device, activation, options, this.#greedy),
      );
    this.#prefill = (row, tokens) => prefillProgram(layout, device, activation, { ...options, row, tokens });
  }
  get rows(): number {
    return this.options.rows;
  }

  /** Whether tokens are, or last were, chosen without drawing: that is a program of its own. */
  #greedy = true;
  readonly #decode: () => ReturnType<ProgramHost['get']>;
  readonly #prefill: (row: number, tokens: number) => Lowered;

  /**
   * Continues each row's tokens. Every row must hold at least one token; rows end on their own.
   * @throws Q4Error Q4504 when a prompt leaves no room in the cache.
   */
  async generate(prompts: readonly (readonly number[])[], options: GenerateOptions): Promise<DecodeResult> {
    const { rows, capacity } = this.options;
    const longest = Math.max(...prompts.map(({ length }) => length));
    if (prompts.length !== rows || prompts.some(({ length }) => length === 0))
      throw new Q4Error(
        'Q4900',
        `a session of ${rows} rows was given ${prompts.length} prompts, or an empty one`,
      );
    if (longest >= capacity)
      throw new Q4Error('Q4504', `a prompt of ${longest} tokens leaves no room in a cache of ${capacity}`, {
        hint: 'raise cache.capacity, or ask for less',
        at: ['cache', 'capacity'],
      });
    for (const [row, ids] of prompts.entries()) await this.#fill(row, ids, options.signal);
    options.onPrefilled?.();
    this.#greedy = options.sampling.temperature === 0;
    const { run } = this.#decode();
    this.#writeState(prompts, options.sampling);
    const result = await run.decode({
      tokens: `${PREFIX}in.ids`,
      maxTokens: Math.min(options.maxTokens, capacity - longest),
      stopTokens: options.stopTokens,
      ...(options.onToken && { onToken: options.onToken }),
      ...(options.signal && { signal: options.signal }),
    });
    // The last token of a row was sampled but not fed.
    result.tokens.forEach((tokens, row) => (this.#cached[row] = [...prompts[row]!, ...tokens.slice(0, -1)]));
    return result;
  }

  /** One more token, op by op: what decoding spends its time on. The token is not part of any answer. */
  async profileDecode(): Promise<ProfiledOp[]> {
    const { run } = this.#decode();
    const { ops = [] } = await run.run({ profile: true });
    return withCosts(run.program, ops);
  }

  dispose(): void {
    this.#host.dispose();
  }

  /** Brings all but the last token of `ids` into the row's cache; decoding feeds the last one. */
  async #fill(row: number, ids: readonly number[], signal: AbortSignal | undefined): Promise<void> {
    const cached = this.#cached[row]!;
    let done = 0;
    while (done < Math.min(cached.length, ids.length - 1) && cached[done] === ids[done]) done++;
    cached.length = done;
    const { store } = this.model;
    while (cached.length < ids.length - 1) {
      const past = cached.length;
      const piece = ids.slice(past, Math.min(past + PREFILL_TOKENS[this.device], ids.length - 1));
      const tokens = piece.length;
      const { run } = this.#host.get(`prefill ${row} ${tokens}`, () => this.#prefill(row, tokens));
      const prefix = `${PREFIX}${tokens}/`;
      store.write(`${prefix}in.ids`, Int32Array.from(piece));
      store.write(
        `${prefix}in.positions`,
        Int32Array.from(piece, (_, i) => past + i),
      );
      store.write(`${prefix}in.past`, Int32Array.of(past));
      await run.run(signal ? { signal } : {});
      cached.push(...piece);
    }
  }

  #writeState(prompts: readonly (readonly number[])[], sampling: Sampling): void {
    const { store, layout } = this.model;
    const { vocabSize } = layout.config;
    const { temperature, topK, topP, minP, repetitionPenalty, seed } = sampling;
    store.write(
      `${PREFIX}in.ids`,
      Int32Array.from(prompts, (ids) => ids[ids.length - 1]!),
    );
    store.write(
      `${PREFIX}in.past`,
      Int32Array.from(prompts, (ids) => ids.length - 1),
    );
    const row = [temperature, topK, topP, minP, repetitionPenalty, 0, 0, 0];
    store.write(`${PREFIX}in.sampling`, Float32Array.from(prompts.flatMap(() => row)));
    store.write(
      `${PREFIX}in.rng`,
      Int32Array.from(prompts.flatMap(() => [seed | 0, Math.floor(seed / 2 ** 32) | 0])),
    );
    const seen = new Uint8Array(prompts.length * vocabSize);
    prompts.forEach((ids, r) => ids.forEach((id) => (seen[r * vocabSize + id] = 1)));
    store.write(`${PREFIX}in.seen`, seen);
  }
}
