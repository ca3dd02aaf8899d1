/** What a command gets, and returns: its exit code. Errors are thrown as Q4Error or Q4Errors. */
import type { Flags } from '../arguments.js';
import type { Terminal } from '../terminal.js';

export interface CommandContext {
  readonly positionals: readonly string[];
  readonly flags: Flags;
  readonly terminal: Terminal;
  /** Module that exports STAGES; tests put their own in its place. */
  readonly registry?: string;
}

export type Command = (context: CommandContext) => Promise<number>;
