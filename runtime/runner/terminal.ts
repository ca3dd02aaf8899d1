/** Where the command line writes: data to stdout, everything for people to stderr. Tests put strings in its place. */
import { makeColors, wantsColor, type Colors } from './colors.js';

export interface Terminal {
  /** Data. */
  out(text: string): void;
  /** For people. */
  err(text: string): void;
  /** A terminal that can be redrawn stands at stderr. */
  readonly interactive: boolean;
  readonly columns: number;
  readonly colors: Colors;
  readonly env: NodeJS.ProcessEnv;
  readonly cwd: string;
}

const LEAST_COLUMNS = 20;

export function processTerminal(noColor: boolean): Terminal {
  const { env, stderr, stdout } = process;
  const isTty = stderr.isTTY === true;
  return {
    out: (text) => void stdout.write(text),
    err: (text) => void stderr.write(text),
    // A terminal that does not say how wide it is cannot be redrawn.
    interactive:
      isTty && stderr.columns >= LEAST_COLUMNS && env['TERM'] !== 'dumb' && env['CI'] === undefined,
    columns: stderr.columns ?? 100,
    colors: makeColors(wantsColor(env, isTty, noColor)),
    env,
    cwd: process.cwd(),
  };
}
