/** An error as people read it: `file:line:col: error[Q4103]: message: hint`, with the line itself on a terminal. */
import { readFileSync } from 'node:fs';
import { relative } from 'node:path';

import { Q4Errors, toQ4Error, type Q4Error } from '../errors.js';
import type { Colors } from './colors.js';

/** Paths below the current directory are shown relative to it. */
export function shortPath(path: string, cwd: string): string {
  if (!path.startsWith('/')) return path;
  const short = relative(cwd, path);
  return short === '' || short.startsWith('..') ? path : short;
}

export const errorsOf = (thrown: unknown): readonly Q4Error[] =>
  thrown instanceof Q4Errors && thrown.errors.length > 0 ? thrown.errors : [toQ4Error(thrown)];

function place(error: Q4Error, cwd: string): string {
  const { file, line, col, offset, entry } = error.details;
  const parts: string[] = [];
  if (file !== undefined) {
    parts.push(
      [shortPath(file, cwd), line, line === undefined ? undefined : col]
        .filter((x) => x !== undefined)
        .join(':'),
    );
  }
  if (offset !== undefined) parts.push(`byte ${offset}`);
  if (entry !== undefined && !error.message.includes(entry)) parts.push(`entry ${entry}`);
  return parts.length === 0 ? '' : `${parts.join(', ')}: `;
}

/** The line of the mistake with its neighbours and a caret. */
export function codeFrame(file: string, line: number, col: number, colors: Colors): string {
  let lines: string[];
  try {
    lines = readFileSync(file, 'utf8').split('\n');
  } catch {
    return '';
  }
  if (lines[line - 1] === undefined) return '';
  const width = String(line + 1).length;
  const out: string[] = [];
  for (let n = Math.max(1, line - 1); n <= Math.min(lines.length, line + 1); n++) {
    const text = lines[n - 1]!.replaceAll('\t', ' ');
    if (n !== line && text.trim() === '') continue;
    const gutter = `${String(n).padStart(width)} │ `;
    out.push(n === line ? `  ${colors.dim(gutter)}${text}` : `  ${colors.dim(gutter + text)}`);
    if (n === line)
      out.push(`  ${' '.repeat(width)} ${colors.dim('│')} ${' '.repeat(col - 1)}${colors.red('^')}`);
  }
  return out.join('\n');
}

export function formatError(error: Q4Error, colors: Colors, cwd: string, frame: boolean): string {
  const { file, line, col, hint, expected, found } = error.details;
  const head = `${colors.bold(place(error, cwd))}${colors.red(`error[${error.code}]`)}: ${error.message}`;
  const short = hint !== undefined && hint.length <= 120 && !hint.includes('\n');
  const lines = [short ? `${head}: ${hint}` : head];
  if (frame && file !== undefined && line !== undefined) {
    const text = codeFrame(file, line, col ?? 1, colors);
    if (text !== '') lines.push(text);
  }
  if (expected !== undefined && !error.message.includes(expected) && !(hint ?? '').includes(expected)) {
    if (!expected.startsWith('one of ')) lines.push(`  expected: ${expected}`);
  }
  if (found !== undefined && !error.message.includes(found)) lines.push(`  found: ${found}`);
  if (hint !== undefined && !short) lines.push(`  ${hint}`);
  if (error.code === 'Q4900') {
    const cause = error.details.cause;
    if (cause instanceof Error && cause.stack !== undefined) lines.push(colors.dim(cause.stack));
  }
  return lines.join('\n');
}

/** All of them, and how many. */
export function formatErrors(thrown: unknown, colors: Colors, cwd: string, frame: boolean): string {
  const errors = errorsOf(thrown);
  const lines = errors.map((error) => formatError(error, colors, cwd, frame));
  if (errors.length > 1) lines.push(`${errors.length} errors`);
  return `${lines.join('\n')}\n`;
}
