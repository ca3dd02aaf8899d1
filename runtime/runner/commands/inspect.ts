import { resolve } from 'node:path';

import { Q4Error } from '../../errors.js';
import type { Json, RunEvent } from '../events/event.js';
import { bytesText } from '../machine.js';
import { shortPath } from '../error-text.js';
import { countText } from '../supervisor/status-text.js';
import type { Command } from './command.js';
import { collect } from './jobs.js';

type Row = Readonly<Record<string, Json>>;

const rowsOf = (value: Json | undefined): readonly Row[] => (Array.isArray(value) ? (value as Row[]) : []);

export const inspect: Command = async (context) => {
  const { terminal, flags } = context;
  const target = resolve(terminal.cwd, context.positionals[0]!);
  const events = await collect(context, { mode: 'inspect', target });
  if (flags.json) return 0;
  const found = events.find((event) => event.ev === 'inspect');
  if (found === undefined) throw new Q4Error('Q4900', 'the worker said nothing about the file');
  terminal.out(
    `${shortPath(target, terminal.cwd)}: ${String(found['kind'])}, ${bytesText(Number(found['bytes']))}\n`,
  );
  terminal.out(found['kind'] === 'checkpoint' ? checkpointText(found) : tensorText(found, flags.verbose));
  return 0;
};

function checkpointText(found: RunEvent): string {
  const lines = [`stage ${String(found['stage'])}, step ${String(found['step'])}`];
  if (typeof found['score'] === 'number') lines.push(`score ${found['score']}`);
  if (found['pinned'] === true) lines.push('pinned: rotation does not remove it');
  lines.push(found['damage'] === null ? 'all checksums match' : `damaged: ${String(found['damage'])}`);
  for (const file of rowsOf(found['files'])) {
    lines.push(
      `  ${bytesText(Number(file['bytes'])).padStart(10)}  ${String(file['sha256']).slice(0, 12)}  ${String(file['path'])}`,
    );
  }
  return `${lines.join('\n')}\n`;
}

const FEW = 24;

function tensorText(found: RunEvent, all: boolean): string {
  const tensors = rowsOf(found['tensors']);
  const lines = [
    `${String(found['entries'])} entries, ${tensors.length} tensors, ${countText(Number(found['elements']))} elements`,
  ];
  const types = (found['types'] ?? {}) as Readonly<Record<string, Row>>;
  for (const [type, sum] of Object.entries(types)) {
    const count = `${String(sum['tensors'])} × ${type}`;
    lines.push(
      `  ${count.padEnd(28)} ${countText(Number(sum['elements'])).padStart(8)}  ${bytesText(Number(sum['bytes'])).padStart(10)}`,
    );
  }
  const metadata = Object.entries((found['metadata'] ?? {}) as Row);
  for (const [key, value] of metadata) lines.push(`  ${key}: ${String(value).slice(0, 200)}`);
  const shown = all ? tensors : tensors.slice(0, FEW);
  const width = Math.max(0, ...shown.map((tensor) => String(tensor['name']).length));
  for (const tensor of shown) {
    const shape = `[${(tensor['shape'] as number[]).join(', ')}]`;
    lines.push(`  ${String(tensor['name']).padEnd(width)}  ${shape.padEnd(16)} ${String(tensor['type'])}`);
  }
  if (shown.length < tensors.length)
    lines.push(`  … ${tensors.length - shown.length} more (--verbose shows all)`);
  return `${lines.join('\n')}\n`;
}
