/** Finds added tokens (`<|im_end|>`, `<think>`) in text, and breaks up what only looks like one. */

export interface AddedMatcher {
  readonly contents: readonly string[];
  /** Captures each added token, the longest first where several begin at one place; null if there are none. */
  readonly pattern: RegExp | null;
  /** Matches one character at every place where an added token begins, overlapping ones included. */
  readonly starts: RegExp | null;
  readonly firstCharacters: readonly string[];
}

export function matcherOf(contents: readonly string[]): AddedMatcher {
  const sorted = [...contents].sort((a, b) => b.length - a.length || (a < b ? -1 : 1));
  const choice = sorted.map((content) => content.replace(/[.*+?^${}()|[\]\\/]/g, '\\$&')).join('|');
  return {
    contents: sorted,
    pattern: choice === '' ? null : new RegExp(`(${choice})`, 'g'),
    starts: choice === '' ? null : new RegExp(`(?=${choice})[\\s\\S]`, 'g'),
    firstCharacters: [...new Set(sorted.map((content) => content[0]!))],
  };
}

/**
 * Puts `separator` behind the first character of every added token in the text, and of every beginning of one that
 * the text ends with: what a template writes next, or the next part of a message, must not complete it. Templates may
 * strip white space, so the end is looked for before it.
 */
export function breakAdded(text: string, separator: string, matcher: AddedMatcher): string {
  if (!matcher.starts) return text;
  const places = new Set<number>();
  for (const match of text.matchAll(matcher.starts)) places.add(match.index);
  for (const whole of [text, text.trimEnd()]) {
    const from = Math.max(0, whole.length - (matcher.contents[0]?.length ?? 0) + 1);
    for (let i = from; i < whole.length; i++) {
      const rest = whole.slice(i);
      if (matcher.contents.some((content) => content.startsWith(rest))) places.add(i);
    }
  }
  if (places.size === 0) return text;
  let out = '';
  let done = 0;
  for (const place of [...places].sort((a, b) => a - b)) {
    out += text.slice(done, place + 1) + separator;
    done = place + 1;
  }
  return out + text.slice(done);
}
