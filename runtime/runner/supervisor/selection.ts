/** --only, --from and --until: which stages run. What they need runs too, since values live in memory only. */
import { Q4Error } from '../../errors.js';
import type { Flags } from '../arguments.js';
import { transitiveNeeds } from '../config/order.js';
import type { Pipeline } from '../config/pipeline.js';
import { didYouMean } from '../config/suggest.js';

/** Throws Q4004. */
export function knownStage(pipeline: Pipeline, id: string): string {
  const ids = pipeline.stages.map((stage) => stage.id);
  if (ids.includes(id)) return id;
  const hint = didYouMean(id, ids) ?? `the stages are ${ids.join(', ')}`;
  throw new Q4Error('Q4004', `there is no stage '${id}'`, { found: id, hint });
}

export const isChosen = (flags: Flags): boolean =>
  flags.only !== undefined || flags.from !== undefined || flags.until !== undefined;

/** Ids in run order. */
export function selectStages(pipeline: Pipeline, flags: Pick<Flags, 'only' | 'from' | 'until'>): string[] {
  const ids = pipeline.stages.map((stage) => stage.id);
  const indexOf = (id: string): number => ids.indexOf(knownStage(pipeline, id));
  const first = flags.only ?? flags.from;
  const last = flags.only ?? flags.until;
  const start = first === undefined ? 0 : indexOf(first);
  const end = last === undefined ? ids.length - 1 : indexOf(last);
  if (start > end) {
    throw new Q4Error('Q4002', `--from ${first} comes after --until ${last}`, {
      hint: `the order is ${ids.join(', ')}`,
    });
  }
  const wanted = new Set(ids.slice(start, end + 1));
  for (const id of [...wanted]) for (const need of transitiveNeeds(pipeline.stages, id)) wanted.add(need);
  return ids.filter((id) => wanted.has(id));
}
