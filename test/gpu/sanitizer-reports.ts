/** What compute-sanitizer printed, and what of it counts. */
import { readFileSync } from 'node:fs';
import { basename, join } from 'node:path';

import { ROOT } from '../stages/q4run.js';

export type Tool = 'memcheck' | 'racecheck';

/**
 * Writes that racecheck cannot follow: those of `function` of `file` (in the struct `of`) are
 * - bulk copies that complete on an mbarrier, or are handed over with such copies. It takes a bulk copy for a write by the
 *   thread that issues it, at once, and does not see what waiting for a barrier orders that copies complete; so every later
 *   read counts as a race, however the readers wait;
 * - handed to a warp that meets the others at a named barrier of its own (decode_share.cuh). It reports them even where all
 *   of these warps wait at every such barrier (`bar.sync` instead of `bar.arrive`);
 * - read, or written over, by a warp that waits for an mbarrier at which one thread arrives after all have met at a named
 *   barrier (Preparation in decode_preparation.cuh). It takes only that thread's accesses for ordered: a kernel that does nothing
 *   else is reported, and is not when all of its threads arrive.
 */
const NOT_FOLLOWED = [
  { file: 'sm90.cuh', function: 'copy_bytes' },
  { file: 'sm90_attention_tiles.cuh', function: 'hand_out' },
  { file: 'sm90_attention_key_gradient.cu', function: 'produce_queries' },
  { file: 'decode_weights.cuh', function: 'copy_codes' },
  { file: 'decode_weights.cuh', function: 'copy_scales' },
  { file: 'decode_weights.cuh', function: 'shared_store_if' },
  { file: 'decode_weights.cuh', function: 'shared_store2_if' },
  { file: 'decode_rows.cuh', function: 'leave', of: 'RowsInt8' },
  { file: 'decode_setup.cuh', function: 'copy_inputs' },
  { file: 'decode_setup.cuh', function: 'copy_batch' },
  { file: 'decode_setup.cuh', function: 'copy_globals' },
] as const;

interface Access {
  readonly kind: string;
  readonly kernel: string;
  /** `file.cu:12`, or the offset in the kernel where there is no line. */
  readonly place: string;
}

const HEAD = /^========= (Error|Warning): Race reported between /;
const ACCESS = /(Read|Write) access at (.+?)\+(0x[0-9a-f]+)(?: in (\S+?):(\d+))?(?=[\s:,]|$)/g;

function accessesOf(text: string): Access[] {
  return [...text.matchAll(ACCESS)].map(([, kind, kernel, offset, file, line]) => ({
    kind: kind!,
    kernel: kernel!,
    place: file === undefined ? offset! : `${basename(file)}:${line}`,
  }));
}

/** First and last line of a function of native/cuda: from its name to the brace that closes it. */
function linesOf(file: string, name: string, struct?: string): readonly [number, number] {
  const lines = readFileSync(join(ROOT, 'native', 'cuda', file), 'utf8').split('\n');
  const from = struct === undefined ? 0 : lines.findIndex((line) => line.startsWith(`struct ${struct} {`));
  const indent = struct === undefined ? '' : '  ';
  const first = lines.findIndex(
    (line, i) => i >= from && line.startsWith(`${indent}__device__`) && line.includes(` ${name}(`),
  );
  const last = lines.findIndex((line, i) => i > first && line === `${indent}}`);
  if (from < 0 || first < 0 || last < 0) throw new Error(`${file} has no function ${name}`);
  return [first + 1, last + 1];
}

const notFollowed = NOT_FOLLOWED.map((known) => ({
  ...known,
  lines: linesOf(known.file, known.function, 'of' in known ? known.of : undefined),
}));

const isFollowed = ({ place }: Access): boolean => {
  const [file, line] = place.split(':');
  return !notFollowed.some(
    (known) => file === known.file && Number(line) >= known.lines[0] && Number(line) <= known.lines[1],
  );
};

/** Races between accesses of our kernels; those of cuBLASLt's, whose barriers racecheck does not follow either, are its. */
export function racesIn(output: string): string[] {
  const races = new Map<string, number>();
  for (const block of output.split(/^========= *$/m)) {
    const text = block.trim();
    if (!HEAD.test(text)) continue;
    const accesses = accessesOf(text);
    if (accesses.length > 0 && !accesses.some(({ kernel }) => kernel.includes('q4::gpu'))) continue;
    if (accesses.some((access) => access.kind === 'Write' && !isFollowed(access))) continue;
    const short = accesses.map(
      ({ kind, kernel, place }) => `${kind} ${/(\w+)(<.*>)?\(/.exec(kernel)?.[1] ?? kernel} ${place}`,
    );
    const line = short.length > 0 ? [...new Set(short)].join(', ') : text.split('\n')[0]!;
    races.set(line, (races.get(line) ?? 0) + 1);
  }
  return [...races].map(([line, count]) => `${count} x ${line}`);
}

/** Why the output is no clean bill; empty when it is one. `code` is the exit code of the tests. */
export function problemsIn(tool: Tool, output: string, code: number | null): string[] {
  const problems = tool === 'racecheck' ? racesIn(output) : [];
  if (/Internal Sanitizer Error/.test(output)) problems.push('the sanitizer failed');
  if (code !== 0) problems.push(`the tests ended with ${code ?? 'a signal'}`);
  const summary = tool === 'memcheck' ? /ERROR SUMMARY: 0 errors/ : /RACECHECK SUMMARY: /;
  if (!summary.test(output)) problems.push(tool === 'memcheck' ? 'there are reports' : 'there is no summary');
  return problems;
}
