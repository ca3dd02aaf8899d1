/** doc/errors.md, made from the table of error codes: `node --import tsx test/lint/errors-doc.ts` writes it. */
import { writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

import { ERROR_CODES, type CodeEntry } from '../../runtime/error-codes.js';

export const ERRORS_DOC = fileURLToPath(new URL('../../doc/errors.md', import.meta.url));

const ROOMS: readonly [prefix: string, title: string][] = [
  ['Q40', 'Command line'],
  ['Q41', 'Pipeline file'],
  ['Q42', 'Weight, config and tokenizer files'],
  ['Q43', 'Text and data'],
  ['Q44', 'Device, memory, disk'],
  ['Q45', 'Programs and stages'],
  ['Q46', 'Gates'],
  ['Q47', 'Worker and signals'],
  ['Q48', 'Divergence'],
  ['Q49', 'Bugs'],
];

/** The whole page. */
export function errorsPage(): string {
  const entries: [string, CodeEntry][] = Object.entries(ERROR_CODES);
  const sections = ROOMS.map(([prefix, title]) => {
    const own = entries.filter(([code]) => code.startsWith(prefix));
    if (own.length === 0) return '';
    const texts = own.map(
      ([code, entry]) => `### ${code}: ${entry.title}\n\nExit ${entry.exit}. ${entry.explain}\n`,
    );
    return `## ${prefix}xx: ${title}\n\n${texts.join('\n')}`;
  });
  return (
    '# Error codes\n\n' +
    'Made from `runtime/error-codes.ts` by `node --import tsx test/lint/errors-doc.ts`; a test keeps it so. ' +
    'Codes are stable: a script may rely on them. `q4run explain CODE` prints the same text.\n\n' +
    sections.filter((text) => text !== '').join('\n')
  );
}

if (process.argv[1] === fileURLToPath(import.meta.url)) writeFileSync(ERRORS_DOC, errorsPage());
