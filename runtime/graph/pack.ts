/** Offsets of buffers in the arena. */
import type { Buffer } from './lifetimes.js';

export interface Packing {
  readonly offsets: ReadonlyMap<Buffer, number>;
  readonly bytes: number;
}

type Order = (a: Buffer, b: Buffer) => number;

const bySize: Order = (a, b) => b.bytes - a.bytes || a.first - b.first;
const byArea: Order = (a, b) =>
  b.bytes * (b.last - b.first + 1) - a.bytes * (a.last - a.first + 1) || a.first - b.first;
const byStart: Order = (a, b) => a.first - b.first || b.bytes - a.bytes;
const byLength: Order = (a, b) => b.last - b.first - (a.last - a.first) || bySize(a, b);

/**
 * Places every buffer so that no two that are alive at the same time overlap: greedily, each into the smallest gap that
 * holds it, in several orders, of which the best is kept. Stops early when the bound `live` is reached.
 */
export function pack(buffers: readonly Buffer[], live: number): Packing {
  let best: Packing | undefined;
  for (const order of [bySize, byArea, byLength, byStart]) {
    const packing = bestFit([...buffers].sort(order));
    if (!best || packing.bytes < best.bytes) best = packing;
    if (best.bytes <= live) break;
  }
  return best!;
}

function bestFit(ordered: readonly Buffer[]): Packing {
  const offsets = new Map<Buffer, number>();
  /** Placed buffers by rising offset. */
  const placed: { buffer: Buffer; offset: number }[] = [];
  let total = 0;
  for (const buffer of ordered) {
    let end = 0;
    let chosen = -1;
    let smallest = Infinity;
    for (const { buffer: other, offset } of placed) {
      if (other.last < buffer.first || other.first > buffer.last) continue;
      const gap = offset - end;
      if (gap >= buffer.bytes && gap < smallest) {
        smallest = gap;
        chosen = end;
      }
      end = Math.max(end, offset + other.bytes);
    }
    const offset = chosen === -1 ? end : chosen;
    offsets.set(buffer, offset);
    total = Math.max(total, offset + buffer.bytes);
    let index = placed.length;
    while (index > 0 && placed[index - 1]!.offset > offset) index--;
    placed.splice(index, 0, { buffer, offset });
  }
  return { offsets, bytes: total };
}
