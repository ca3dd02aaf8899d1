/** Error events of the worker name a path in the pipeline file; here it becomes a file, line and column. */
import { Q4Error, type ErrorCode, type ErrorDetails } from '../../errors.js';
import { originAt, placeOf, type MapNode, type Path } from '../config/tree.js';
import type { EventBody, RunEvent } from '../events/event.js';

export function placed(event: RunEvent, tree: MapNode | null): RunEvent {
  const { at, ...rest } = event;
  if (tree === null || !Array.isArray(at) || event['file'] !== undefined) return rest as RunEvent;
  const { file, line, col } = placeOf(originAt(tree, at as Path));
  const place = file === undefined ? stagePlace(tree, at as Path) : { file, line, col };
  return { ...rest, ...place } as RunEvent;
}

/** A default has no place of its own: the stage's is shown. */
function stagePlace(tree: MapNode, at: Path): { file?: string; line?: number; col?: number } {
  const { file, line, col } = placeOf(originAt(tree, at.slice(0, 2)));
  return {
    ...(file !== undefined && { file }),
    ...(line !== undefined && { line }),
    ...(col !== undefined && { col }),
  };
}

export function toError(event: EventBody): Q4Error {
  const details: Record<string, unknown> = {};
  for (const key of ['file', 'line', 'col', 'offset', 'entry', 'expected', 'found', 'hint'] as const) {
    if (event[key] !== undefined && event[key] !== null) details[key] = event[key];
  }
  if (typeof event['stack'] === 'string') {
    const cause = new Error(String(event['message']));
    cause.stack = event['stack'];
    details['cause'] = cause;
  }
  return new Q4Error(event['code'] as ErrorCode, String(event['message']), details as ErrorDetails);
}
