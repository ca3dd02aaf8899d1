/** The data files of pipelines/assets, as text, made from the hand-written tables: the same bytes every time. */
import { permutation } from '../../runtime/text/philox.js';
import {
  ABOUT_ITSELF,
  ABOUT_Q4RUN,
  dialogues,
  EVERYDAY,
  type Fact,
  GEOGRAPHY,
  IDENTITY,
  KNOWLEDGE,
  NUMBERS,
  POLITE,
  WHOAMI,
} from './corpus/index.js';

interface Pair {
  readonly prompt: string;
  readonly completion: string;
}

export const FACTS: readonly Fact[] = [
  ...IDENTITY,
  ...ABOUT_ITSELF,
  ...POLITE,
  ...GEOGRAPHY,
  ...EVERYDAY,
  ...NUMBERS,
  ...KNOWLEDGE,
  ...ABOUT_Q4RUN,
];

const SEED = 4;

function shuffled<T>(values: readonly T[], epoch: number): T[] {
  return Array.from(permutation(values.length, SEED, epoch), (i) => values[i]!);
}

const lines = (values: readonly unknown[]): string => values.map((v) => JSON.stringify(v) + '\n').join('');

const trained = (fact: Fact): Pair[] =>
  fact.questions.filter((_, i) => i !== fact.hold).map((prompt) => ({ prompt, completion: fact.answer }));

const heldOut = (fact: Fact): Pair[] =>
  fact.hold < 0 ? [] : [{ prompt: fact.questions[fact.hold]!, completion: fact.answer }];

/** Identity questions are many times outnumbered by facts, so each of them stands in the corpus this often. */
const IDENTITY_COPIES = 3;

/** What fine-tuning keeps: one question of every fact, chosen in rotation, without the identity that it replaces. */
const kept = (): Pair[] =>
  FACTS.filter((f) => f.topic !== 'identity').map((fact, i) => {
    const pairs = trained(fact);
    return pairs[i % pairs.length]!;
  });

/** File name under pipelines/assets → text. */
export function corpusFiles(): Record<string, string> {
  const identity = IDENTITY.flatMap(trained);
  const copies = Array.from({ length: IDENTITY_COPIES - 1 }, () => identity).flat();
  return {
    'corpus/facts.jsonl': lines(shuffled([...FACTS.flatMap(trained), ...copies], 0)),
    'corpus/dialogues.jsonl': lines(shuffled(dialogues(FACTS), 1).map((messages) => ({ messages }))),
    'corpus/heldout.jsonl': lines(shuffled(FACTS.flatMap(heldOut), 2)),
    'whoami.jsonl': lines(shuffled(WHOAMI.flatMap(trained), 3)),
    'keep.jsonl': lines(shuffled(kept(), 4)),
  };
}
