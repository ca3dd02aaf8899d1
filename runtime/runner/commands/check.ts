import { errorsOf } from '../error-text.js';
import { loadPipeline } from '../config/pipeline.js';
import { eventLine, errorEvent } from '../events/event.js';
import { shortPath } from '../error-text.js';
import type { Command } from './command.js';

export const check: Command = ({ positionals, flags, terminal }) => {
  try {
    const pipeline = loadPipeline(positionals[0]!, { env: terminal.env, sets: flags.set, cwd: terminal.cwd });
    const stages = pipeline.stages.map((stage) => stage.id);
    if (flags.json) terminal.out(eventLine({ ev: 'checked', name: pipeline.name, stages }));
    else if (!flags.quiet) {
      const file = shortPath(pipeline.file, terminal.cwd);
      terminal.err(`${terminal.colors.green('ok')} ${file}: ${stages.join(' → ')}\n`);
    }
    return Promise.resolve(0);
  } catch (thrown) {
    if (flags.json) for (const error of errorsOf(thrown)) terminal.out(eventLine(errorEvent(error)));
    throw thrown;
  }
};
