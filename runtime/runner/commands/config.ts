import { effectiveYaml } from '../config/effective.js';
import { loadPipeline } from '../config/pipeline.js';
import { toPlain } from '../config/tree.js';
import { shortPath } from '../error-text.js';
import type { Command } from './command.js';

export const config: Command = ({ positionals, flags, terminal }) => {
  const pipeline = loadPipeline(positionals[0]!, { env: terminal.env, sets: flags.set, cwd: terminal.cwd });
  if (flags.json) terminal.out(`${JSON.stringify(toPlain(pipeline.tree), null, 2)}\n`);
  else {
    const shorten = (path: string): string => shortPath(path, terminal.cwd);
    terminal.out(effectiveYaml(pipeline.tree, shorten, terminal.colors.dim));
  }
  return Promise.resolve(0);
};
