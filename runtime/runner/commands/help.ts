import { COMMANDS, FLAGS } from '../arguments.js';
import { packageVersion } from '../config/package-root.js';
import type { Command } from './command.js';

const EXITS = `0 done · 2 wrong command line · 3 configuration invalid · 4 preflight refused · 5 a stage failed
6 a gate said no · 7 the worker crashed · 8 memory guard · 9 diverged · 130/143 interrupted · 1 a bug in q4run`;

export const help: Command = ({ terminal }) => {
  const { bold, dim } = terminal.colors;
  const rows = (pairs: [string, string][]): string => {
    const width = Math.max(...pairs.map(([left]) => left.length));
    return pairs.map(([left, right]) => `  ${left.padEnd(width)}  ${dim(right)}`).join('\n');
  };
  const commands = Object.entries(COMMANDS).map(([name, { argument, text }]): [string, string] => [
    `q4run ${name === 'run' ? '' : `${name} `}${argument}`.trim(),
    text,
  ]);
  const flags = Object.entries(FLAGS).map(([name, { value, short, text }]): [string, string] => [
    `${name}${value === undefined ? '' : ` ${value}`}${short === undefined ? '' : `, ${short}`}`,
    text,
  ]);
  terminal.out(
    `${bold('q4run')}: full-parameter training and inference of Qwen3-family models with NVFP4 weights, from YAML\n\n` +
      `${bold('Commands')}\n${rows(commands)}\n\n${bold('Flags')}\n${rows(flags)}\n\n${bold('Exit codes')}\n${EXITS}\n`,
  );
  return Promise.resolve(0);
};

export const version: Command = ({ terminal }) => {
  terminal.out(`${packageVersion()}\n`);
  return Promise.resolve(0);
};
