/** What this machine, this build and this directory offer, and the command that mends what is amiss. */
import { accessSync, constants, existsSync } from 'node:fs';
import { cpus, totalmem } from 'node:os';
import { join } from 'node:path';

import { Q4Errors } from '../../errors.js';
import type { Probe } from '../../engine/engine.js';
import { PACKAGE_ROOT, packageVersion } from '../config/package-root.js';
import { availableMemory, bytesText, freeDisk } from '../machine.js';
import type { Command } from './command.js';
import { collect } from './jobs.js';

interface Finding {
  readonly what: string;
  readonly state: 'ok' | 'note' | 'bad';
  readonly text: string;
  /** A command. */
  readonly mend?: string;
}

const LEAST_NODE = [20, 17] as const;
const LITTLE_MEMORY = 1024 ** 3;
const LITTLE_DISK = 1024 ** 3;

function nodeFinding(): Finding {
  const [major = 0, minor = 0] = process.versions.node.split('.').map(Number);
  const good = major > LEAST_NODE[0] || (major === LEAST_NODE[0] && minor >= LEAST_NODE[1]);
  const text = `${process.version}, ${process.platform} ${process.arch}`;
  return good
    ? { what: 'node', state: 'ok', text }
    : { what: 'node', state: 'bad', text, mend: 'nvm install 20' };
}

function memoryFinding(): Finding {
  const available = availableMemory();
  const text = `${bytesText(available)} free of ${bytesText(totalmem())}`;
  return { what: 'memory', state: available < LITTLE_MEMORY ? 'note' : 'ok', text };
}

function diskFinding(cwd: string): Finding {
  try {
    accessSync(cwd, constants.W_OK);
  } catch {
    return { what: 'disk', state: 'bad', text: `${cwd} cannot be written to`, mend: 'cd ~' };
  }
  const free = freeDisk(cwd);
  const text = free === null ? 'unknown' : `${bytesText(free)} free here`;
  return { what: 'disk', state: free !== null && free < LITTLE_DISK ? 'note' : 'ok', text };
}

function probeFindings(probe: Probe): Finding[] {
  const { cpu, cudaBuilt, cudaTargets, cudaReason, cudaDevices } = probe;
  const findings: Finding[] = [
    { what: 'addon', state: 'ok', text: 'loads' },
    { what: 'cpu', state: 'ok', text: `${cpu.name}, ${cpu.instructions}, ${cpu.threads} threads` },
    cudaBuilt
      ? { what: 'cuda build', state: 'ok', text: cudaTargets }
      : { what: 'cuda build', state: 'note', text: 'not in this build; it is built when nvcc is found' },
  ];
  if (cudaDevices.length === 0) findings.push({ what: 'gpu', state: 'note', text: cudaReason });
  for (const gpu of cudaDevices) {
    const memory = `${bytesText(gpu.freeBytes)} free of ${bytesText(gpu.totalBytes)}`;
    findings.push({
      what: `gpu ${gpu.index}`,
      state: 'ok',
      text: `${gpu.name}, ${gpu.instructions}, ${memory}`,
    });
  }
  return findings;
}

const REBUILD = `cd ${PACKAGE_ROOT} && npm run build:native`;

export const doctor: Command = async (context) => {
  const { terminal, flags } = context;
  const findings: Finding[] = [
    { what: 'q4run', state: 'ok', text: packageVersion() },
    nodeFinding(),
    { what: 'processor', state: 'ok', text: `${cpus()[0]?.model ?? 'unknown'}, ${cpus().length} cores` },
    memoryFinding(),
    diskFinding(terminal.cwd),
  ];
  let probe: Probe | null = null;
  try {
    // In a process of its own: an addon that crashes on loading becomes a line here.
    const quiet = { ...context, flags: { ...flags, json: false } };
    const events = await collect(quiet, { mode: 'probe' });
    probe = (events.find((event) => event.ev === 'probe')?.['probe'] as unknown as Probe | undefined) ?? null;
    if (probe !== null) findings.push(...probeFindings(probe));
  } catch (thrown) {
    if (!(thrown instanceof Q4Errors)) throw thrown;
    for (const error of thrown.errors) {
      findings.push({ what: 'addon', state: 'bad', text: error.message, mend: REBUILD });
    }
  }
  if (!existsSync(join(PACKAGE_ROOT, 'schemas', 'pipeline.schema.json'))) {
    findings.push({ what: 'schemas', state: 'bad', text: 'missing', mend: 'npm ci' });
  }
  const bad = findings.filter(({ state }) => state === 'bad');
  if (flags.json) {
    terminal.out(`${JSON.stringify({ healthy: bad.length === 0, findings, probe }, null, 2)}\n`);
    return bad.length === 0 ? 0 : 4;
  }
  const { green, yellow, red, bold } = terminal.colors;
  const marks = { ok: green('✓'), note: yellow('!'), bad: red('✗') };
  for (const { what, state, text } of findings) terminal.out(`${marks[state]} ${what.padEnd(10)} ${text}\n`);
  const mend = bad.find((finding) => finding.mend !== undefined)?.mend;
  terminal.out(
    mend === undefined
      ? `\n${green('everything that is needed is here')}\n`
      : `\nto mend it: ${bold(mend)}\n`,
  );
  return bad.length === 0 ? 0 : 4;
};
