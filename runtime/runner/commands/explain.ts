import { ERROR_CODES, type CodeEntry } from '../../error-codes.js';
import { Q4Error } from '../../errors.js';
import { didYouMean } from '../config/suggest.js';
import type { Command } from './command.js';

const ENTRIES: Readonly<Record<string, CodeEntry>> = ERROR_CODES;

export const explain: Command = ({ positionals, flags, terminal }) => {
  const { bold, dim } = terminal.colors;
  const [word] = positionals;
  if (word === undefined) {
    if (flags.json) terminal.out(`${JSON.stringify(ENTRIES, null, 2)}\n`);
    else {
      for (const [code, { exit, title }] of Object.entries(ENTRIES)) {
        terminal.out(`${bold(code)}  ${dim(`exit ${String(exit).padEnd(3)}`)}  ${title}\n`);
      }
    }
    return Promise.resolve(0);
  }
  const code = word.toUpperCase().replace(/^(?=[0-9])/, 'Q');
  const entry = ENTRIES[code];
  if (entry === undefined) {
    const hint = didYouMean(code, Object.keys(ENTRIES)) ?? 'q4run explain lists all codes';
    throw new Q4Error('Q4002', `there is no error code '${word}'`, { found: word, hint });
  }
  if (flags.json) terminal.out(`${JSON.stringify({ code, ...entry }, null, 2)}\n`);
  else
    terminal.out(`${bold(`${code}: ${entry.title}`)} ${dim(`(exit ${entry.exit})`)}\n\n${entry.explain}\n`);
  return Promise.resolve(0);
};
