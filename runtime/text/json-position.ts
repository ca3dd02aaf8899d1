/**
 * Where a text stops being JSON. `JSON.parse` says what is wrong but, on Node 20, not always where; this scanner runs
 * only after it has failed.
 */
export interface JsonMistake {
  /** Index into the text, in UTF-16 units. */
  readonly index: number;
  /** 1-based. */
  readonly line: number;
  /** 1-based, in characters of UTF-16 units. */
  readonly col: number;
  readonly expected: string;
  readonly found: string;
}

const STRING = /"(?:[^"\\\u0000-\u001f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"/y;
const NUMBER = /-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?/y;
const WORD = /true|false|null/y;
const SPACE = /[ \t\r\n]*/y;

type Expected = 'value' | 'value or ]' | 'key' | 'key or }' | ':' | ', or ]' | ', or }' | 'the end';

const DESCRIPTION: Record<Expected, string> = {
  value: 'a value',
  'value or ]': "a value or ']'",
  key: 'a key in double quotes',
  'key or }': "a key in double quotes or '}'",
  ':': "':'",
  ', or ]': "',' or ']'",
  ', or }': "',' or '}'",
  'the end': 'the end of the text',
};

/** The first mistake, or null where the text is JSON. Never recurses, so nesting costs no stack. */
export function findJsonMistake(text: string): JsonMistake | null {
  const open: ('[' | '{')[] = [];
  let expected: Expected = 'value';
  let index = 0;
  const take = (pattern: RegExp): boolean => {
    pattern.lastIndex = index;
    const match = pattern.exec(text);
    if (match) index += match[0].length;
    return match !== null;
  };
  const closed = (): Expected =>
    open.length === 0 ? 'the end' : open[open.length - 1] === '[' ? ', or ]' : ', or }';
  for (;;) {
    take(SPACE);
    const char = text[index];
    if (char === undefined && expected === 'the end') return null;
    let next: Expected | null = null;
    if (char === undefined) next = null;
    else if (expected === 'value' || expected === 'value or ]') {
      if (char === '[' || char === '{') {
        open.push(char);
        index++;
        next = char === '[' ? 'value or ]' : 'key or }';
      } else if (char === ']' && expected === 'value or ]') {
        open.pop();
        index++;
        next = closed();
      } else if (take(STRING) || take(NUMBER) || take(WORD)) next = closed();
    } else if (expected === 'key' || expected === 'key or }') {
      if (char === '}' && expected === 'key or }') {
        open.pop();
        index++;
        next = closed();
      } else if (take(STRING)) next = ':';
    } else if (expected === ':' && char === ':') {
      index++;
      next = 'value';
    } else if (expected === ', or ]' || expected === ', or }') {
      const close: ']' | '}' = expected === ', or ]' ? ']' : '}';
      if (char === ',') next = close === ']' ? 'value' : 'key';
      else if (char === close) {
        open.pop();
        next = closed();
      }
      if (next !== null) index++;
    }
    if (next === null) return mistake(text, index, DESCRIPTION[expected]);
    expected = next;
  }
}

function mistake(text: string, index: number, expected: string): JsonMistake {
  const before = text.slice(0, index);
  const line = before.split('\n').length;
  const col = index - before.lastIndexOf('\n');
  const found = index >= text.length ? 'the end of the text' : JSON.stringify(text.slice(index, index + 12));
  return { index, line, col, expected, found };
}
