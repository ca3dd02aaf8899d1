/** The stream of events: everything that the screen, the log, the report and machines see is made from it. */
import { ERROR_CODES } from '../../error-codes.js';
import type { Q4Error } from '../../errors.js';

export const EVENT_VERSION = 1;

export type Json = null | boolean | number | string | readonly Json[] | { readonly [key: string]: Json };

/** Before it has a time. */
export interface EventBody {
  readonly ev: string;
  readonly [field: string]: Json | undefined;
}

/** As it stands in events.jsonl; fields by `ev` in schemas/events.schema.json. */
export interface RunEvent extends EventBody {
  readonly v: number;
  /** Milliseconds since 1970. */
  readonly t: number;
}

export const stamp = (body: EventBody, now: number = Date.now()): RunEvent => ({
  v: EVENT_VERSION,
  t: now,
  ...body,
});

/** JSON has no NaN and infinities: they become the strings that JavaScript prints. */
const finite = (_key: string, value: unknown): unknown =>
  typeof value === 'number' && !Number.isFinite(value) ? String(value) : value;

export const eventText = (event: EventBody): string => JSON.stringify(event, finite);

/** One line of the stream. */
export const eventLine = (body: EventBody): string => `${eventText(stamp(body))}\n`;

export function errorEvent(error: Q4Error, stage?: string): EventBody {
  const { file, line, col, offset, entry, expected, found, hint, at, cause } = error.details;
  const stack = error.code === 'Q4900' && cause instanceof Error ? cause.stack : undefined;
  const fields = {
    ...(stage === undefined ? {} : { stage }),
    code: error.code,
    exit: ERROR_CODES[error.code].exit,
    title: ERROR_CODES[error.code].title,
    message: error.message,
    ...{ file, line, col, offset, entry, expected, found, hint, stack },
    at: at === undefined ? undefined : [...at],
  };
  return { ev: 'error', ...fields };
}
