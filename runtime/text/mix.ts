/** Several data sets as one: what an epoch of the mix holds. */
import { Q4Error } from '../errors.js';
import { permutation, STREAM } from './philox.js';

export interface MixSource {
  readonly samples: number;
  /** Times that it is gone through in one epoch. Default 1. */
  readonly repeat?: number;
  /** Share of the mix, against the other weights: all sources have one, or none. */
  readonly weight?: number;
}

/**
 * Sample numbers of an epoch before shuffling, the sources' samples counted one after the other. With weights the epoch
 * is as long as without, divided by weight: whole passes of a source, and the rest of it drawn anew in every epoch.
 */
export function mixOrder(sources: readonly MixSource[], seed: number): (epoch: number) => Uint32Array {
  const weighted = sources.filter((source) => source.weight !== undefined).length;
  if (weighted !== 0 && weighted !== sources.length)
    throw new Q4Error('Q4318', 'some data sources have a weight and some have none', {
      expected: 'a weight for every source, or for none',
      found: `${weighted} of ${sources.length} with a weight`,
    });
  const repeated = sources.map((source) => source.samples * (source.repeat ?? 1));
  const total = repeated.reduce((a, b) => a + b, 0);
  const weights = sources.reduce((sum, source) => sum + (source.weight ?? 0), 0);
  const counts = sources.map((source, i) =>
    weighted === 0 ? repeated[i]! : Math.max(1, Math.round((total * source.weight!) / weights)),
  );
  const firsts = sources.map((_, i) => sources.slice(0, i).reduce((sum, source) => sum + source.samples, 0));
  return (epoch) => {
    const order = new Uint32Array(counts.reduce((a, b) => a + b, 0));
    let at = 0;
    sources.forEach((source, s) => {
      const passes = Math.floor(counts[s]! / source.samples);
      const rest = counts[s]! % source.samples;
      // Another stream than the shuffle's, or the rest would always stand at the same places of the mix.
      const drawn = rest === 0 ? null : permutation(source.samples, seed, epoch, STREAM.mix + s);
      for (let i = 0; i < counts[s]!; i++) {
        const pass = Math.floor(i / source.samples);
        const within = i % source.samples;
        order[at++] = firsts[s]! + (pass < passes ? within : drawn![within]!);
      }
    });
    return order;
  };
}
