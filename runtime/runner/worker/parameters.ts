/** A stage's `with`, made complete for the moment it is used: defaults by precision, late references, output paths. */
import { isAbsolute, resolve } from 'node:path';

import { Q4Error, Q4Errors } from '../../errors.js';
import type { PipelineStage } from '../config/pipeline.js';
import { resolveLate } from '../config/references.js';
import { fromPlain, type MapNode, type Path, type Plain } from '../config/tree.js';
import type { Json } from '../events/event.js';

export type Parameters = Readonly<Record<string, Plain>>;

type Container = Record<string | number, Plain>;

function valueAt(root: Plain, path: Path): Plain | undefined {
  let value: Plain | undefined = root;
  for (const key of path) {
    if (typeof value !== 'object' || value === null) return undefined;
    value = (value as Container)[key];
  }
  return value;
}

function setAt(root: Plain, path: Path, value: Plain): void {
  const parent = valueAt(root, path.slice(0, -1)) as Container;
  parent[path[path.length - 1]!] = value;
}

/** The path in the pipeline file of something below the stage's `with`. */
export const placeInFile = (stage: PipelineStage, path: Path): Path => [
  'stages',
  stage.index,
  'with',
  ...path,
];

function deepFreeze<T extends Plain>(value: T): T {
  if (typeof value === 'object' && value !== null) {
    Object.values(value).forEach(deepFreeze);
    Object.freeze(value);
  }
  return value;
}

/** `outputs` of the stages that ran; a name that is not there is Q4110. */
function lateValue(
  stage: PipelineStage,
  path: Path,
  outputs: ReadonlyMap<string, Readonly<Record<string, Json>>>,
) {
  return (id: string, names: readonly string[]): Plain => {
    let value: unknown = outputs.get(id);
    for (const name of names) {
      const known = typeof value === 'object' && value !== null ? Object.keys(value) : [];
      value =
        typeof value === 'object' && value !== null ? (value as Record<string, unknown>)[name] : undefined;
      if (value === undefined || value === null) {
        throw new Q4Error('Q4110', `the stage '${id}' has no output '${names.join('.')}'`, {
          at: placeInFile(stage, path),
          hint:
            known.length > 0 && known.length < 40
              ? `it has ${known.join(', ')}`
              : 'see its outputs in report.json',
        });
      }
    }
    return structuredClone(value) as Plain;
  };
}

export interface Completion {
  readonly precision: 'fp32' | 'bf16';
  readonly runDirectory: string;
  /** null while planning: stages with late references cannot be planned. */
  readonly outputs: ReadonlyMap<string, Readonly<Record<string, Json>>> | null;
}

/** Frozen parameters. Throws Q4110 and, when a late value does not fit the schema, Q41xx. */
export async function completeParameters(stage: PipelineStage, completion: Completion): Promise<Parameters> {
  const { precision, runDirectory, outputs } = completion;
  const parameters = structuredClone(stage.with) as Record<string, Plain>;
  for (const { path, values } of stage.byPrecision) {
    const map = valueAt(parameters, path) as Container;
    for (const [key, value] of Object.entries(values[precision] ?? {})) map[key] ??= value;
  }
  if (outputs !== null && stage.late.length > 0) {
    for (const { path, text } of stage.late) {
      setAt(parameters, path, resolveLate(text, lateValue(stage, path, outputs)));
    }
    await validateAgain(stage, parameters);
  }
  for (const { path, use } of stage.paths) {
    const value = valueAt(parameters, path);
    if (typeof value !== 'string' || isAbsolute(value)) continue;
    const late = stage.late.find((reference) => reference.path.join('\n') === path.join('\n'));
    if (use === 'output') setAt(parameters, path, resolve(runDirectory, value));
    else if (late !== undefined && outputs !== null) setAt(parameters, path, resolve(late.base, value));
  }
  return deepFreeze(parameters);
}

async function validateAgain(stage: PipelineStage, parameters: Record<string, Plain>): Promise<void> {
  // Loaded only now: ajv is not needed in most workers.
  const { Validator } = await import('../config/validator.js');
  const { toQ4Errors } = await import('../config/schema-errors.js');
  const { errors } = new Validator().document(`stages/${stage.uses}`, parameters);
  if (errors.length === 0) return;
  // A tree in the shape of the file, so that messages name the stage and places can be found.
  const frame = fromPlain({ id: stage.id, with: parameters }, { kind: 'default' }, '');
  const items = Array.from({ length: stage.index + 1 }, () => frame);
  const origin = { kind: 'default' } as const;
  const root: MapNode = {
    kind: 'map',
    origin,
    entries: new Map([['stages', { keyOrigin: origin, node: { kind: 'sequence', items, origin } }]]),
  };
  throw new Q4Errors(
    toQ4Errors(
      errors.map((error) => ({ ...error, path: placeInFile(stage, error.path) })),
      root,
    ),
  );
}
