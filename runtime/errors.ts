/**
 * The one error type of q4run. A message says what is wrong; `expected`, `found` and `hint` teach. Stages throw it
 * without a place in the YAML; the runner adds that.
 */
import { ERROR_CODES, type ErrorCode } from './error-codes.js';

export type { ErrorCode } from './error-codes.js';

/** Where the mistake stands: a line and column of a text file, or a byte offset / entry of a binary one. */
export interface ErrorPlace {
  file?: string;
  /** 1-based. */
  line?: number;
  /** 1-based. */
  col?: number;
  offset?: number;
  /** Name of a tensor, key or entry, escaped. */
  entry?: string;
}

export interface ErrorDetails extends ErrorPlace {
  expected?: string;
  found?: string;
  /** What to do about it. */
  hint?: string;
  cause?: unknown;
  /** Path of keys in the pipeline file, e.g. ['stages', 2, 'with', 'learning_rate']; the runner turns it into line:col. */
  at?: readonly (string | number)[];
}

export class Q4Error extends Error {
  override readonly name = 'Q4Error';
  readonly code: ErrorCode;
  readonly details: ErrorDetails;

  constructor(code: ErrorCode, message: string, details: ErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.code = code;
    this.details = details;
  }

  /** The process exit code that this error leads to (interface.md's table). */
  get exit(): number {
    return ERROR_CODES[this.code].exit;
  }
}

/** Several errors at once, in the order of the file: all mistakes of a pipeline are told together. */
export class Q4Errors extends Error {
  override readonly name = 'Q4Errors';
  constructor(readonly errors: readonly Q4Error[]) {
    super(errors.map((e) => e.message).join('\n'));
  }
  get exit(): number {
    return this.errors[0]?.exit ?? 1;
  }
}

const isCode = (code: unknown): code is ErrorCode =>
  typeof code === 'string' && Object.hasOwn(ERROR_CODES, code);

/** Turns whatever was thrown into a Q4Error; native errors carry `code` and `hint`, anything unknown is a bug (Q4900). */
export function toQ4Error(thrown: unknown): Q4Error {
  if (thrown instanceof Q4Error) return thrown;
  if (thrown instanceof Q4Errors && thrown.errors[0]) return thrown.errors[0];
  const error = thrown instanceof Error ? thrown : new Error(String(thrown));
  const { code, hint } = error as { code?: unknown; hint?: unknown };
  const details: ErrorDetails = { cause: error };
  if (typeof hint === 'string' && hint !== '') details.hint = hint;
  if (isCode(code)) return new Q4Error(code, error.message, details);
  return new Q4Error('Q4900', error.message || 'an unknown error', details);
}
