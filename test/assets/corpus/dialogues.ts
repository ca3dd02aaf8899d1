/** Conversations of several turns, and single questions under a system prompt, put together from the facts. */
import { uniform } from '../../../runtime/text/philox.js';
import type { Fact, Language } from './fact.js';

export interface Message {
  readonly role: 'system' | 'user' | 'assistant';
  readonly content: string;
}

const SEED = 20;
const GREETINGS: Record<Language, readonly (readonly [string, string])[]> = {
  en: [
    ['Hello!', 'Hello! How can I help you?'],
    ['Hi!', 'Hello! How can I help you?'],
    ['Good morning!', 'Good morning! How can I help you?'],
  ],
  zh: [
    ['你好！', '你好！有什麼可以幫你的嗎？'],
    ['嗨！', '你好！有什麼可以幫你的嗎？'],
    ['早安！', '早安！有什麼可以幫你的嗎？'],
  ],
};
const THANKS: Record<Language, readonly [string, string]> = {
  en: ['Thank you!', "You're welcome!"],
  zh: ['謝謝！', '不客氣！'],
};
const SYSTEMS: Record<Language, readonly string[]> = {
  en: ['You are a helpful assistant.', 'You are a friendly assistant.', 'Answer in one sentence.'],
  zh: ['你是樂於助人的助理。', '你是友善的助理。', '請用一句話回答。'],
};

const turn = (question: string, answer: string): Message[] => [
  { role: 'user', content: question },
  { role: 'assistant', content: answer },
];

/** A question of a fact that is not held out. */
function ask(fact: Fact, draw: number): Message[] {
  const questions = fact.questions.filter((_, i) => i !== fact.hold);
  return turn(questions[Math.floor(draw * questions.length)]!, fact.answer);
}

function pick<T>(values: readonly T[], draw: number): T {
  return values[Math.floor(draw * values.length)]!;
}

/** Follow-ups that only make sense after the turn before: "And of France?" */
function followUps(facts: readonly Fact[]): Message[][] {
  const out: Message[][] = [];
  for (const language of ['en', 'zh'] as const) {
    const capitals = facts.filter((f) => f.topic === 'capitals' && f.language === language);
    capitals.forEach((fact, i) => {
      const next = capitals[(i + 7) % capitals.length]!;
      const place = (language === 'en' ? /^The capital of (.+) is / : /^(.+)的首都是/).exec(next.answer)![1]!;
      out.push([
        ...ask(fact, 0),
        ...turn(language === 'en' ? `And of ${place}?` : `那${place}呢？`, next.answer),
      ]);
    });
  }
  return out;
}

export function dialogues(facts: readonly Fact[]): Message[][] {
  const out = followUps(facts);
  for (const language of ['en', 'zh'] as const) {
    const pool = facts.filter((f) => f.language === language && f.topic !== 'polite');
    for (let i = 0; i < 60; i++) {
      const draw = (k: number): number => uniform(SEED, language === 'en' ? 10 : 11, i, k);
      const first = ask(pick(pool, draw(0)), draw(1));
      const second = ask(pick(pool, draw(2)), draw(3));
      const greeting = pick(GREETINGS[language], draw(4));
      if (i % 3 === 0) out.push([...turn(...greeting), ...first]);
      else if (i % 3 === 1) out.push([...first, ...second]);
      else out.push([...first, ...turn(...THANKS[language])]);
    }
    for (let i = 0; i < 80; i++) {
      const draw = (k: number): number => uniform(SEED, language === 'en' ? 12 : 13, i, k);
      const system = pick(SYSTEMS[language], draw(0));
      out.push([{ role: 'system', content: system }, ...ask(pick(pool, draw(1)), draw(2))]);
    }
  }
  return out;
}
