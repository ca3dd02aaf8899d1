/** ANSI colours, or none. */
export interface Colors {
  readonly enabled: boolean;
  red(text: string): string;
  green(text: string): string;
  yellow(text: string): string;
  cyan(text: string): string;
  bold(text: string): string;
  dim(text: string): string;
}

const wrap =
  (enabled: boolean, open: number, close: number) =>
  (text: string): string =>
    enabled ? `\u001b[${open}m${text}\u001b[${close}m` : text;

export const makeColors = (enabled: boolean): Colors => ({
  enabled,
  red: wrap(enabled, 31, 39),
  green: wrap(enabled, 32, 39),
  yellow: wrap(enabled, 33, 39),
  cyan: wrap(enabled, 36, 39),
  bold: wrap(enabled, 1, 22),
  dim: wrap(enabled, 2, 22),
});

/** NO_COLOR and --no-color win, then FORCE_COLOR, then whether it is a terminal. */
export function wantsColor(env: NodeJS.ProcessEnv, isTty: boolean, flag: boolean): boolean {
  if (flag || (env['NO_COLOR'] !== undefined && env['NO_COLOR'] !== '')) return false;
  const force = env['FORCE_COLOR'];
  if (force !== undefined) return force !== '0' && force !== 'false';
  return isTty && env['TERM'] !== 'dumb';
}
