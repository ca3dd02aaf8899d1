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
  const second = context.positionals[1];
  const other = second === undefined ? '' : resolve(terminal.cwd, second);
  const events = await collect(context, { mode: 'inspect', target, other });
  if (flags.json) return 0;
  const found = events.find((event) => event.ev === 'inspect');
  if (found === undefined) throw new Q4Error('Q4900', 'the worker said nothing about the file');
  if (found['kind'] === 'difference') {
    terminal.out(differenceText(found, flags.verbose));
    return 0;
  }
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

/** At most a few, unless all are asked for. */
function listed(lines: readonly string[], all: boolean): string[] {
  if (all || lines.length <= FEW) return [...lines];
  return [...lines.slice(0, FEW), `  … ${lines.length - FEW} more (--verbose shows all)`];
}

const measure = (value: Json | undefined): string =>
  typeof value === 'number' ? value.toExponential(2) : String(value);

function differenceText(found: RunEvent, all: boolean): string {
  const names = (key: string): string[] => (found[key] as string[]).map((name) => `  ${name}`);
  const different = rowsOf(found['different']);
  const lines = [
    `${String(found['same'])} tensors are the same byte for byte, ${String(found['same_values'])} hold the same values in another form`,
  ];
  for (const [key, text] of [
    ['only_here', 'only in the first'],
    ['only_there', 'only in the second'],
  ] as const)
    if (names(key).length > 0) lines.push(`${names(key).length} ${text}:`, ...listed(names(key), all));
  if (different.length > 0) lines.push(`${different.length} differ:`);
  const rows = different.map((row) => {
    const forms = row['a'] === row['b'] ? String(row['a']) : `${String(row['a'])} → ${String(row['b'])}`;
    const values =
      row['rel_l2'] === null
        ? 'another shape'
        : `relative L2 ${measure(row['rel_l2'])}, at most ${measure(row['max_abs'])}`;
    return `  ${String(row['name'])}  ${forms}: ${values}`;
  });
  return `${[...lines, ...listed(rows, all)].join('\n')}\n`;
}

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
  const scales = found['quantisation'] as Row | null | undefined;
  if (scales) {
    const count = (key: string): string => Number(scales[key]).toLocaleString('en');
    const [least, most] = [measure(scales['global_scale_min']), measure(scales['global_scale_max'])];
    lines.push(
      `  ${count('matrices')} NVFP4 matrices, ${count('blocks')} blocks: ${count('zero_blocks')} with scale 0, ` +
        `${count('floor_blocks')} at 2^-6; global scales ${least === most ? least : `${least} to ${most}`}`,
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
