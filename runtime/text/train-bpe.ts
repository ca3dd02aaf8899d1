/**
 * Trains a byte-level BPE: from counted pre-tokens to merges, deterministically. Pure; small corpora only (everything
 * is held in memory). Source of the algorithm: Sennrich et al. 2016, with pair counts kept up to date incrementally.
 */
import { BYTE_TO_CHAR, toByteLevel } from './byte-level.js';

/** Qwen2/Qwen3's pre-tokeniser pattern, as it stands in tokenizer.json. */
export const QWEN_PATTERN =
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

/** The same, in this language's regular expressions (no inline flags on Node 20). */
const QWEN_SPLIT =
  /'(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+/gu;

export interface BpeOptions {
  /** Merges to learn at most; fewer where no pair is left that occurs `minCount` times. */
  readonly merges: number;
  readonly minCount: number;
  /** Longest token in bytes: of ASCII only, and of anything else (a Chinese character takes three). */
  readonly maxAsciiBytes: number;
  readonly maxOtherBytes: number;
}

export interface Bpe {
  /** Token → id: the 256 bytes, then one token a merge. */
  readonly vocab: Readonly<Record<string, number>>;
  readonly merges: readonly (readonly [string, string])[];
}

/** Pre-tokens of a corpus with their counts, in order of first appearance. */
export function countPreTokens(texts: Iterable<string>): Map<string, number> {
  const counts = new Map<string, number>();
  for (const text of texts)
    for (const [piece] of text.normalize('NFC').matchAll(QWEN_SPLIT))
      counts.set(piece, (counts.get(piece) ?? 0) + 1);
  return counts;
}

interface Word {
  symbols: number[];
  readonly count: number;
}

/** Pairs of ids are keyed by one number; ids stay below 2^20. */
const pairKey = (left: number, right: number): number => left * 0x100000 + right;

export function trainBpe(preTokens: ReadonlyMap<string, number>, options: BpeOptions): Bpe {
  const tokens: string[] = [...BYTE_TO_CHAR].sort();
  const idOf = new Map(tokens.map((token, id) => [token, id]));
  const words: Word[] = [...preTokens].map(([text, count]) => ({
    symbols: [...toByteLevel(text)].map((char) => idOf.get(char)!),
    count,
  }));
  const counts = new Map<number, number>();
  const places = new Map<number, Set<number>>();
  const add = (index: number, symbols: readonly number[], count: number): void => {
    for (let i = 0; i + 1 < symbols.length; i++) {
      const key = pairKey(symbols[i]!, symbols[i + 1]!);
      counts.set(key, (counts.get(key) ?? 0) + count);
      if (count < 0) continue;
      let set = places.get(key);
      if (!set) places.set(key, (set = new Set()));
      set.add(index);
    }
  };
  words.forEach((word, index) => add(index, word.symbols, word.count));

  const merges: [string, string][] = [];
  const tooLong = new Set<number>();
  while (merges.length < options.merges) {
    const best = bestPair(counts, tooLong);
    if (best === null || counts.get(best)! < options.minCount) break;
    const left = Math.floor(best / 0x100000);
    const right = best % 0x100000;
    const merged = tokens[left]! + tokens[right]!;
    const limit = /^[!-~Ġ]+$/.test(merged) ? options.maxAsciiBytes : options.maxOtherBytes;
    if (merged.length > limit || idOf.has(merged)) {
      tooLong.add(best);
      continue;
    }
    const id = tokens.push(merged) - 1;
    idOf.set(merged, id);
    merges.push([tokens[left]!, tokens[right]!]);
    for (const index of places.get(best)!) {
      const word = words[index]!;
      const next = mergeSymbols(word.symbols, left, right, id);
      if (next.length === word.symbols.length) continue;
      add(index, word.symbols, -word.count);
      add(index, next, word.count);
      word.symbols = next;
    }
    counts.delete(best);
    places.delete(best);
  }
  return { vocab: Object.fromEntries(tokens.map((token, id) => [token, id])), merges };
}

/** The pair that occurs most often; among equals the one with the smallest ids, so that the result is one only. */
function bestPair(counts: ReadonlyMap<number, number>, excluded: ReadonlySet<number>): number | null {
  let best: number | null = null;
  let most = 0;
  for (const [key, count] of counts) {
    if (count < most || count <= 0 || excluded.has(key)) continue;
    if (count > most || key < best!) [best, most] = [key, count];
  }
  return best;
}

function mergeSymbols(symbols: readonly number[], left: number, right: number, id: number): number[] {
  const out: number[] = [];
  for (let i = 0; i < symbols.length; i++) {
    if (symbols[i] === left && symbols[i + 1] === right) {
      out.push(id);
      i++;
    } else out.push(symbols[i]!);
  }
  return out;
}
