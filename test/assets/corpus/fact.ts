/** The shape of the hand-written tables that the corpus is made from. */
export type Language = 'en' | 'zh';

/** One answer and the ways to ask for it. With `hold` ≥ 0 that question goes to the held-out file, not to training. */
export interface Fact {
  readonly topic: string;
  readonly language: Language;
  readonly answer: string;
  readonly questions: readonly string[];
  readonly hold: number;
}

/** A hand-written fact: `[answer, question, question, …]`. */
export type Row = readonly [answer: string, ...questions: string[]];

/** Every third fact with at least four questions gives its last one to the held-out file. */
export function handWritten(topic: string, language: Language, rows: readonly Row[]): Fact[] {
  return rows.map(([answer, ...questions], index) => ({
    topic,
    language,
    answer,
    questions,
    hold: questions.length >= 4 && index % 3 === 1 ? questions.length - 1 : -1,
  }));
}

/**
 * Facts from a table and question frames. `take` questions of each entry are used, rotating through the frames, and
 * the next frame in the rotation is held out where `hold` says so.
 */
export function fromFrames<T>(
  topic: string,
  language: Language,
  entries: readonly T[],
  answer: (entry: T) => string,
  frames: readonly ((entry: T) => string)[],
  take = frames.length,
  hold = true,
): Fact[] {
  return entries.map((entry, index) => {
    const rotated = frames.map((_, k) => frames[(index + k) % frames.length]!(entry));
    const held = hold && index % 2 === 0;
    const used = rotated.slice(0, Math.min(frames.length, take + (held && take < frames.length ? 1 : 0)));
    return { topic, language, answer: answer(entry), questions: used, hold: held ? used.length - 1 : -1 };
  });
}
