/** Whether stages fit together: ids, needs, and what each takes from those before it. */
import { Q4Error } from '../../errors.js';
import type { LateReference } from './references.js';
import { readStageSchema, stageNames } from './schemas.js';
import { didYouMean } from './suggest.js';
import { nodeAt, originAt, placeOf, type ConfigNode, type Path, type Plain } from './tree.js';

/** As far as the file says; schema errors may leave things out. */
export interface RoughStage {
  readonly id: string;
  readonly uses: string;
  readonly needs: readonly string[];
  readonly index: number;
  readonly with: Readonly<Record<string, Plain>>;
}

const isMap = (value: unknown): value is Record<string, Plain> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

export function roughStages(data: Plain): RoughStage[] {
  const stages = isMap(data) && Array.isArray(data['stages']) ? data['stages'] : [];
  return stages.flatMap((stage, index) => {
    if (!isMap(stage) || typeof stage['id'] !== 'string') return [];
    const needs = Array.isArray(stage['needs'])
      ? stage['needs'].filter((need) => typeof need === 'string')
      : [];
    const parameters = isMap(stage['with']) ? stage['with'] : {};
    return [{ id: stage['id'], uses: String(stage['uses']), needs, index, with: parameters }];
  });
}

/** The ids that `id` needs, directly or not, nearest first (breadth first, in the order written). */
export function transitiveNeeds(
  stages: readonly { id: string; needs: readonly string[] }[],
  id: string,
): string[] {
  const byId = new Map(stages.map((stage) => [stage.id, stage]));
  const found: string[] = [];
  let ring = byId.get(id)?.needs ?? [];
  while (ring.length > 0) {
    const next: string[] = [];
    for (const need of ring) {
      if (need === id || found.includes(need)) continue;
      found.push(need);
      next.push(...(byId.get(need)?.needs ?? []));
    }
    ring = next;
  }
  return found;
}

/** Needs first; otherwise as written. Stages in a circle are left out. */
export function runOrder<T extends { id: string; needs: readonly string[] }>(stages: readonly T[]): T[] {
  const order: T[] = [];
  const done = new Set<string>();
  for (let progress = true; progress;) {
    progress = false;
    for (const stage of stages) {
      if (done.has(stage.id) || !stage.needs.every((need) => done.has(need))) continue;
      order.push(stage);
      done.add(stage.id);
      progress = true;
      break;
    }
  }
  return order;
}

export function checkStages(root: ConfigNode, data: Plain, late: readonly LateReference[]): Q4Error[] {
  const stages = roughStages(data);
  const errors: Q4Error[] = [];
  const firstWithId = new Map<string, RoughStage>();
  for (const stage of stages) {
    const first = firstWithId.get(stage.id);
    if (first === undefined) firstWithId.set(stage.id, stage);
    else {
      const { line } = placeOf(originAt(root, ['stages', first.index, 'id']));
      const hint = `the first stands in line ${line}; give this one another id`;
      errors.push(
        at(root, ['stages', stage.index, 'id'], 'Q4112', `two stages have the id '${stage.id}'`, hint),
      );
    }
  }
  const ids = [...firstWithId.keys()];
  const unique = stages.filter((stage) => stages.filter(({ id }) => id === stage.id).length === 1);
  for (const stage of stages) errors.push(...checkNeeds(root, stage, ids, unique.includes(stage)));
  errors.push(...checkCircles(root, stages, ids));
  const known = stageNames();
  for (const stage of stages) {
    // A mistake in `needs` or `uses` is told once, not again as a missing input.
    const related = [stage.id, ...transitiveNeeds(stages, stage.id)];
    const sound = related.every(
      (id) =>
        stages.filter((other) => other.id === id).length === 1 &&
        known.includes(firstWithId.get(id)!.uses) &&
        firstWithId.get(id)!.needs.every((need) => ids.includes(need)) &&
        !reachesItself(stages, id),
    );
    if (sound) errors.push(...checkTakes(root, stage, stages));
  }
  for (const reference of late) errors.push(...checkLate(reference, stages));
  return errors;
}

const at = (
  root: ConfigNode,
  path: Path,
  code: 'Q4110' | 'Q4112' | 'Q4113' | 'Q4114',
  message: string,
  hint?: string,
) =>
  new Q4Error(code, message, {
    ...placeOf(originAt(root, path)),
    at: path,
    ...(hint === undefined ? {} : { hint }),
  });

function checkNeeds(root: ConfigNode, stage: RoughStage, ids: readonly string[], unique: boolean): Q4Error[] {
  return stage.needs.flatMap((need, i) => {
    const path: Path = ['stages', stage.index, 'needs', i];
    if (need === stage.id && !unique) return [];
    if (need === stage.id) return [at(root, path, 'Q4113', `stage '${stage.id}' needs itself`)];
    if (ids.includes(need)) return [];
    const hint = didYouMean(need, ids) ?? `the stages are ${ids.join(', ')}`;
    return [
      at(root, path, 'Q4113', `stage '${stage.id}' needs '${need}', which is not in the pipeline`, hint),
    ];
  });
}

function checkCircles(root: ConfigNode, stages: readonly RoughStage[], ids: readonly string[]): Q4Error[] {
  const real = stages.map((stage) => ({
    ...stage,
    needs: stage.needs.filter((need) => ids.includes(need) && need !== stage.id),
  }));
  const ordered = new Set(runOrder(real).map((stage) => stage.id));
  const stuck = real.filter((stage) => !ordered.has(stage.id));
  const inCircle = stuck.filter((stage) => reachesItself(real, stage.id));
  const first = inCircle[0];
  if (first === undefined) return [];
  const circle = inCircle.map((stage) => stage.id).join(', ');
  return [
    at(
      root,
      ['stages', first.index, 'needs'],
      'Q4113',
      `these stages need each other in a circle: ${circle}`,
    ),
  ];
}

const reachesItself = (stages: readonly RoughStage[], id: string): boolean => {
  const byId = new Map(stages.map((stage) => [stage.id, stage]));
  const seen = new Set<string>();
  const queue = [...(byId.get(id)?.needs ?? [])];
  for (let need = queue.pop(); need !== undefined; need = queue.pop()) {
    if (need === id) return true;
    if (!seen.has(need)) queue.push(...(byId.get(need)?.needs ?? []));
    seen.add(need);
  }
  return false;
};

function checkTakes(root: ConfigNode, stage: RoughStage, stages: readonly RoughStage[]): Q4Error[] {
  const schema = readStageSchema(stage.uses);
  const waiver = schema['x-takes-nothing-with'];
  if (waiver !== undefined && waiver in stage.with) return [];
  const before = transitiveNeeds(stages, stage.id)
    .map((id) => stages.find((other) => other.id === id))
    .filter((other) => other !== undefined);
  const given = before.flatMap((other) =>
    stageNames().includes(other.uses) ? readStageSchema(other.uses)['x-gives'] : [],
  );
  return schema['x-takes']
    .filter((kinds) => !kinds.some((kind) => given.includes(kind)))
    .map((kinds) => {
      const what = kinds
        .map((kind) => `a ${kind}`)
        .join(' or ')
        .replace('a weights', 'weights');
      const givers = stages.filter(
        (other) =>
          other.id !== stage.id &&
          stageNames().includes(other.uses) &&
          readStageSchema(other.uses)['x-gives'].some((kind) => kinds.includes(kind)),
      );
      const names = givers.map((other) => `'${other.id}'`).join(' or ');
      const hint =
        givers.length > 0
          ? `add ${names} to its needs`
          : waiver === undefined
            ? 'no stage of this pipeline gives it; add one'
            : `add a stage that gives it, or use '${waiver}'`;
      const path: Path = [
        'stages',
        stage.index,
        nodeAt(root, ['stages', stage.index, 'needs']) ? 'needs' : 'id',
      ];
      const message = `stage '${stage.id}' takes ${what}, but nothing that it needs gives one`;
      return at(root, path, 'Q4114', message, hint);
    });
}

function checkLate(reference: LateReference, stages: readonly RoughStage[]): Q4Error[] {
  const place = placeOf(reference.node.origin);
  const text = `\${stages.${reference.stage}.outputs.${reference.output.join('.')}}`;
  const index = reference.path[0] === 'stages' ? Number(reference.path[1]) : NaN;
  const user = stages.find((stage) => stage.index === index);
  if (user === undefined || reference.path[2] !== 'with') {
    const hint = `only a stage's with: can use it`;
    return [new Q4Error('Q4110', `${text} is known only while the stages run`, { ...place, hint })];
  }
  const ids = stages.map((stage) => stage.id);
  if (!ids.includes(reference.stage)) {
    const hint = didYouMean(reference.stage, ids) ?? `the stages are ${ids.join(', ')}`;
    return [new Q4Error('Q4110', `${text}: there is no stage '${reference.stage}'`, { ...place, hint })];
  }
  if (transitiveNeeds(stages, user.id).includes(reference.stage)) return [];
  const hint = `add '${reference.stage}' to the needs of '${user.id}'`;
  return [
    new Q4Error('Q4110', `${text}: '${reference.stage}' need not run before '${user.id}'`, {
      ...place,
      hint,
    }),
  ];
}
