/** Command line → command → exit code. Commands are loaded when they are wanted: `check` must be quick. */
import { parseArguments, type CommandLine, type CommandName } from './arguments.js';
import type { Command } from './commands/command.js';
import { errorsOf, formatErrors } from './error-text.js';
import { processTerminal, type Terminal } from './terminal.js';

const LOADERS: Readonly<Record<CommandName, () => Promise<Command>>> = {
  run: async () => (await import('./commands/run.js')).run,
  check: async () => (await import('./commands/check.js')).check,
  plan: async () => (await import('./commands/plan.js')).plan,
  config: async () => (await import('./commands/config.js')).config,
  why: async () => (await import('./commands/why.js')).why,
  graph: async () => (await import('./commands/describe.js')).graph,
  preview: async () => (await import('./commands/describe.js')).preview,
  inspect: async () => (await import('./commands/inspect.js')).inspect,
  doctor: async () => (await import('./commands/doctor.js')).doctor,
  schema: async () => (await import('./commands/schema.js')).schema,
  explain: async () => (await import('./commands/explain.js')).explain,
  help: async () => (await import('./commands/help.js')).help,
  version: async () => (await import('./commands/help.js')).version,
};

export interface MainOptions {
  readonly terminal?: Terminal;
  /** Module that exports STAGES, instead of stages/index. */
  readonly registry?: string;
}

/** Never throws; the errors are on stderr when it returns the exit code. */
export async function main(argv: readonly string[], options: MainOptions = {}): Promise<number> {
  const terminal = options.terminal ?? processTerminal(argv.includes('--no-color'));
  let line: CommandLine | undefined;
  try {
    line = parseArguments(argv);
    const command = await LOADERS[line.command]();
    const { positionals, flags } = line;
    return await command({
      positionals,
      flags,
      terminal,
      ...(options.registry && { registry: options.registry }),
    });
  } catch (thrown) {
    terminal.err(formatErrors(thrown, terminal.colors, terminal.cwd, terminal.interactive));
    return errorsOf(thrown)[0]!.exit;
  }
}
