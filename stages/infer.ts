/** Asks the model: prompts or a conversation, streamed; `expect` turns answers into a gate. */
import { Q4Error } from '../runtime/errors.js';
import { planInference, InferenceSession, type Sampling } from '../runtime/sessions/inference.js';
import { measureRoofs, profileOf, profileText } from '../runtime/sessions/profile.js';
import type { LoadedModel, PlannedModel } from '../runtime/sessions/model.js';
import type { ChatMessage } from '../runtime/text/chat-template.js';
import type { ModelText } from '../runtime/text/model-text.js';
import type { Json, Stage, StageContext, StagePlan, StageResult, StageValues } from './context.js';

interface Expectation {
  readonly prompt: string;
  readonly matches?: string;
  readonly contains?: string;
  readonly not_matches?: string;
}

interface Params {
  readonly prompts?: readonly string[];
  readonly messages?: readonly ChatMessage[];
  readonly system?: string;
  readonly max_tokens: number;
  readonly temperature: number;
  readonly top_k: number;
  readonly top_p: number;
  readonly min_p: number;
  readonly repetition_penalty: number;
  readonly seed?: number;
  readonly stop: readonly string[];
  readonly cache: { readonly capacity: number };
  readonly thinking: boolean;
  readonly conversation: boolean;
  readonly raw: boolean;
  readonly stream: boolean;
  readonly expect: readonly Expectation[];
}

interface Question {
  /** As the user wrote it; the last user message of `messages`. */
  readonly prompt: string;
  readonly messages: readonly ChatMessage[];
}

interface Answer {
  readonly prompt: string;
  readonly text: string;
  readonly tokens: number;
  readonly prompt_tokens: number;
  readonly finish_reason: string;
  readonly tokens_per_second: number;
  readonly ttft_ms: number;
}

/** Prompts asked and prompts that only `expect` names, each once, and the conversation given. */
function questions(params: Params): Question[] {
  const opening: ChatMessage[] =
    params.system === undefined ? [] : [{ role: 'system', content: params.system }];
  const prompts = [...new Set([...(params.prompts ?? []), ...params.expect.map(({ prompt }) => prompt)])];
  const asked = prompts.map((prompt): Question => {
    return { prompt, messages: [...opening, { role: 'user', content: prompt }] };
  });
  if (!params.messages) return asked;
  const last = params.messages.findLast(({ role }) => role === 'user');
  return [{ prompt: String(last?.content ?? ''), messages: [...opening, ...params.messages] }, ...asked];
}

function needText(text: ModelText | null): ModelText {
  if (text) return text;
  throw new Q4Error('Q4505', 'the model has no tokenizer, so it cannot be asked in words', {
    hint: 'set tokenizer on the load-dat stage to a folder with tokenizer.json',
  });
}

function encode(text: ModelText, messages: readonly ChatMessage[], params: Params): number[] {
  const ids = params.raw
    ? text.tokenizer.encodeText(messages.map(({ content }) => String(content)).join('\n'))
    : needTemplate(text).encode(messages, {
        addGenerationPrompt: true,
        variables: { enable_thinking: params.thinking },
      });
  if (ids.length > 0) return ids;
  throw new Q4Error('Q4505', 'a prompt without a single token cannot be continued', { at: ['prompts'] });
}

function needTemplate(text: ModelText): NonNullable<ModelText['template']> {
  if (text.template) return text.template;
  throw new Q4Error('Q4301', 'the model has no chat template', {
    hint: 'ask with raw: true, or add chat_template.jinja beside the tokenizer',
    at: ['raw'],
  });
}

/** Where the earliest stop string begins, -1 if none does. */
const findStop = (text: string, stops: readonly string[]): number =>
  stops.reduce((first, stop) => {
    const at = text.indexOf(stop);
    return at >= 0 && (first < 0 || at < first) ? at : first;
  }, -1);

/** Length of the longest end of `text` that could still grow into a stop string: it is not shown yet. */
function heldBack(text: string, stops: readonly string[]): number {
  let most = 0;
  for (const stop of stops)
    for (let n = Math.min(stop.length - 1, text.length); n > most; n--)
      if (text.endsWith(stop.slice(0, n))) most = n;
  return most;
}

async function answer(
  session: InferenceSession,
  text: ModelText,
  ids: number[],
  prompt: string,
  params: Params,
  ctx: StageContext,
): Promise<Answer> {
  const detokenizer = text.tokenizer.streamingDetokenizer();
  const stopTokens = text.tokenizer.eosIds;
  const watch = ctx.stopwatch();
  let whole = '';
  let shown = 0;
  let ttft = 0;
  const show = (until: number): void => {
    if (until <= shown) return;
    if (params.stream) ctx.emit({ ev: 'token', prompt, text: whole.slice(shown, until) });
    shown = until;
  };
  const onToken = (_: number, token: number): boolean => {
    if (ttft === 0) ttft = watch();
    if (stopTokens.includes(token)) return true;
    whole += detokenizer.push(token);
    const stop = findStop(whole, params.stop);
    if (stop >= 0) {
      whole = whole.slice(0, stop);
      show(stop);
      return true;
    }
    show(whole.length - heldBack(whole, params.stop));
    return false;
  };
  const result = await session.generate([ids], {
    sampling: samplingOf(params, ctx),
    maxTokens: params.max_tokens,
    stopTokens,
    onToken,
    signal: ctx.signal,
  });
  if (ctx.signal.aborted) throw ctx.interrupted();
  if (findStop(whole, params.stop) < 0) whole += detokenizer.flush();
  show(whole.length);
  const tokens = result.tokens[0]!.length;
  const decoding = watch() - ttft;
  return {
    prompt,
    text: whole,
    tokens,
    prompt_tokens: ids.length,
    finish_reason: result.finish[0]!,
    // Of decoding alone: the first token belongs to the prompt.
    tokens_per_second: tokens > 1 && decoding > 0 ? (tokens - 1) / decoding : 0,
    ttft_ms: ttft * 1000,
  };
}

const samplingOf = (params: Params, ctx: StageContext): Sampling => ({
  temperature: params.temperature,
  topK: params.top_k,
  topP: params.top_p,
  minP: params.min_p,
  repetitionPenalty: params.repetition_penalty,
  seed: params.seed ?? ctx.seed,
});

/** Cache length: as asked for, or what the longest prompt and its answer need, within what the model was made for. */
function capacityFor(longest: number, turns: number, params: Params, most: number): number {
  if (params.cache.capacity > 0) return params.cache.capacity;
  const needed = params.conversation ? (longest + params.max_tokens) * turns : longest + params.max_tokens;
  return Math.max(Math.min(needed + 1, most), Math.min(longest + 2, most));
}

function checkExpectations(params: Params, answers: readonly Answer[]): string[] {
  return params.expect.flatMap((expected) => {
    const { prompt, matches, contains, not_matches: notMatches } = expected;
    const { text } = answers.find((answered) => answered.prompt === prompt)!;
    const failed: string[] = [];
    if (matches !== undefined && !new RegExp(matches, 'u').test(text))
      failed.push(`should match /${matches}/`);
    if (contains !== undefined && !text.includes(contains)) failed.push(`should contain "${contains}"`);
    if (notMatches !== undefined && new RegExp(notMatches, 'u').test(text))
      failed.push(`should not match /${notMatches}/`);
    return failed.map((rule) => `"${prompt}" → "${text}" ${rule}`);
  });
}

async function plan(params: Params, inputs: StageValues, ctx: StageContext): Promise<StagePlan> {
  const model = inputs['model'] as PlannedModel;
  const asked = questions(params);
  // The prompts are not tokenised here; a byte is at least no token less.
  const longest = Math.max(...asked.map(({ messages }) => JSON.stringify(messages).length));
  const { maxPositionEmbeddings } = model.layout.config;
  const capacity = capacityFor(longest, asked.length, params, maxPositionEmbeddings);
  const memory = planInference(model.layout, ctx.engine.device.kind, model.activation, { rows: 1, capacity });
  return {
    summary: `${asked.length} questions, up to ${params.max_tokens} tokens each, ${params.expect.length} expectations`,
    bytes: {},
    transientBytes: { cache: memory.cache, activations: memory.activations, io: memory.io },
    values: {},
  };
}

async function run(params: Params, inputs: StageValues, ctx: StageContext): Promise<StageResult> {
  const model = inputs['model'] as LoadedModel;
  const text = needText(model.text);
  const asked = questions(params);
  if (asked.length === 0)
    throw new Q4Error('Q4505', 'there is nothing to ask', {
      hint: 'set prompts or messages',
      at: ['prompts'],
    });
  const longest = Math.max(...asked.map(({ messages }) => encode(text, messages, params).length));
  const capacity = capacityFor(longest, asked.length, params, model.layout.config.maxPositionEmbeddings);
  const session = new InferenceSession(ctx.engine, model, { rows: 1, capacity });
  const answers: Answer[] = [];
  try {
    const conversation: ChatMessage[] = [];
    for (const { prompt, messages } of asked) {
      const turn =
        params.conversation && conversation.length > 0
          ? messages.filter(({ role }) => role !== 'system')
          : messages;
      const history = params.conversation ? [...conversation, ...turn] : messages;
      const answered = await answer(session, text, encode(text, history, params), prompt, params, ctx);
      if (params.conversation) conversation.push(...turn, { role: 'assistant', content: answered.text });
      answers.push(answered);
      ctx.emit({ ev: 'answer', ...answered });
    }
    if (ctx.profile) {
      const profile = profileOf(
        await session.profileDecode(),
        await measureRoofs(ctx.engine, model.activation),
      );
      ctx.emit({ ev: 'note', message: `one token, op by op\n${profileText(profile)}` });
    }
  } finally {
    session.dispose();
  }
  const failed = checkExpectations(params, answers);
  const outputs = {
    texts: answers as unknown as Json,
    expectations: params.expect.length,
    failed_expectations: failed,
  };
  if (failed.length === 0) return { values: {}, outputs };
  const failure = new Q4Error(
    'Q4602',
    `${failed.length} of ${params.expect.length} answers are not as expected:\n  ${failed.join('\n  ')}`,
    {
      hint: 'the answers of the run stand in report.html; train longer, or change what is expected',
      at: ['expect'],
    },
  );
  return { values: {}, outputs, failure };
}

export const infer: Stage<Params> = { uses: 'infer', takes: [['model', 'checkpoint']], gives: [], plan, run };
