import { loadPipeline } from '../config/pipeline.js';
import { knownStage, selectStages } from '../supervisor/selection.js';
import type { Command, CommandContext } from './command.js';
import { collect } from './jobs.js';

async function describe(context: CommandContext, mode: 'graph' | 'preview'): Promise<number> {
  const { flags, terminal, positionals } = context;
  const { bold } = terminal.colors;
  const pipeline = loadPipeline(positionals[0]!, { env: terminal.env, sets: flags.set, cwd: terminal.cwd });
  const only = positionals[1] === undefined ? undefined : knownStage(pipeline, positionals[1]);
  const selected = selectStages(pipeline, { only, from: undefined, until: undefined });
  const events = await collect(context, { mode, pipeline, selected, ...(only !== undefined && { only }) });
  if (flags.json) return 0;
  for (const event of events) {
    if (event.ev !== 'text') continue;
    terminal.out(
      `${bold(`# ${String(event['stage'])}: ${String(event['title'])}`)}\n${String(event['text'])}\n`,
    );
  }
  return 0;
}

/** The programs that the stages run. */
export const graph: Command = (context) => describe(context, 'graph');

/** The data as the model will see them. */
export const preview: Command = (context) => describe(context, 'preview');
