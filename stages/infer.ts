/** Asks the model: prompts or a conversation, streamed; `expect` turns answers into a gate. */
import { Q4Error } from '../runtime/errors.js';
import { planInference, InferenceSession, type Sampling } from '../runtime/sessions/inference.js';
import { measureRoofs, profileOf, profileText } from '../runtime/sessions/profile.js';
import type { LoadedModel, PlannedModel } from '../runtime/sessions/model.js';
import { AnswerStream } from '../runtime/text/answer-stream.js';
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
  readonly batch_size: number;
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

interface Asked {
  readonly prompt: string;
  readonly ids: readonly number[];
}

/** Asks several questions at once, one a row of the session; rows that are not needed repeat the first. */
async function answerTogether(
  session: InferenceSession,
  text: ModelText,
  asked: readonly Asked[],
  params: Params,
  ctx: StageContext,
): Promise<Answer[]> {
  const watch = ctx.stopwatch();
  const firstAt: number[] = [];
  const lastAt: number[] = [];
  const streams = asked.map(({ prompt }) => {
    const show = (piece: string): void => ctx.emit({ ev: 'token', prompt, text: piece });
    return new AnswerStream(text.tokenizer, params.stop, params.stream ? show : () => undefined);
  });
  const rows = Array.from({ length: session.rows }, (_, row) => asked[row] ?? asked[0]!);
  const result = await session.generate(
    rows.map(({ ids }) => ids),
    {
      sampling: samplingOf(params, ctx),
      maxTokens: params.max_tokens,
      stopTokens: text.tokenizer.eosIds,
      onToken: (row, token) => {
        const now = watch();
        firstAt[row] ??= now;
        lastAt[row] = now;
        return streams[row]?.push(token) ?? true;
      },
      signal: ctx.signal,
    },
  );
  if (ctx.signal.aborted) throw ctx.interrupted();
  return asked.map(({ prompt, ids }, row) => {
    streams[row]!.finish();
    const tokens = result.tokens[row]!.length;
    const decoding = lastAt[row]! - firstAt[row]!;
    return {
      prompt,
      text: streams[row]!.text,
      tokens,
      prompt_tokens: ids.length,
      finish_reason: result.finish[row]!,
      // Of decoding alone: the first token belongs to the prompt.
      tokens_per_second: tokens > 1 && decoding > 0 ? (tokens - 1) / decoding : 0,
      ttft_ms: firstAt[row]! * 1000,
    };
  });
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
  return Math.min(needed + 1, most);
}

/** Without a capacity that was asked for, the model itself is the limit. */
function checkLength(longest: number, params: Params, most: number): void {
  if (params.cache.capacity > 0 || longest < most) return;
  throw new Q4Error(
    'Q4504',
    `a prompt of ${longest} tokens leaves no room in the ${most} positions of the model`,
    {
      expected: `fewer than ${most} tokens (max_position_embeddings)`,
      found: `${longest} tokens`,
      hint: 'shorten the prompt',
      at: [params.messages ? 'messages' : 'prompts'],
    },
  );
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

const utf8Bytes = (text: string): number => new TextEncoder().encode(text).length;

async function plan(params: Params, inputs: StageValues, ctx: StageContext): Promise<StagePlan> {
  const model = inputs['model'] as PlannedModel;
  const asked = questions(params);
  // The prompts are not tokenised here. No token is shorter than a byte, and JSON takes more around a message than the
  // usual templates do.
  const longest = Math.max(...asked.map(({ messages }) => utf8Bytes(JSON.stringify(messages))));
  const { maxPositionEmbeddings } = model.layout.config;
  const capacity = capacityFor(longest, asked.length, params, maxPositionEmbeddings);
  const memory = planInference(model.layout, ctx.engine.device.kind, model.activation, {
    rows: params.conversation ? 1 : Math.min(params.batch_size, asked.length),
    capacity,
  });
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
  const { maxPositionEmbeddings: most } = model.layout.config;
  checkLength(longest, params, most);
  const capacity = capacityFor(longest, asked.length, params, most);
  const rows = params.conversation ? 1 : Math.min(params.batch_size, asked.length);
  const session = new InferenceSession(ctx.engine, model, { rows, capacity });
  const answers: Answer[] = [];
  const keep = (answered: readonly Answer[]): void => {
    answers.push(...answered);
    for (const one of answered) ctx.emit({ ev: 'answer', ...one });
  };
  try {
    if (params.conversation) {
      const conversation: ChatMessage[] = [];
      for (const { prompt, messages } of asked) {
        // The system message opens the conversation once.
        conversation.push(...messages.filter(({ role }) => conversation.length === 0 || role !== 'system'));
        const ids = encode(text, conversation, params);
        keep(await answerTogether(session, text, [{ prompt, ids }], params, ctx));
        conversation.push({ role: 'assistant', content: answers.at(-1)!.text });
      }
    } else {
      const encoded = asked.map(({ prompt, messages }) => ({ prompt, ids: encode(text, messages, params) }));
      for (let i = 0; i < encoded.length; i += rows)
        keep(await answerTogether(session, text, encoded.slice(i, i + rows), params, ctx));
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
