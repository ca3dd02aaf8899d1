/** The command line, read into one complete value. */
import { Q4Error } from '../errors.js';
import { didYouMean } from './config/suggest.js';

export const COMMANDS = {
  run: { argument: 'FILE.yaml', text: 'run a pipeline (the word run may be left out)' },
  check: { argument: 'FILE.yaml', text: 'tell all mistakes, run nothing' },
  plan: { argument: 'FILE.yaml', text: 'what would run, how much memory and disk it takes' },
  config: { argument: 'FILE.yaml', text: 'the effective configuration, with the origin of each value' },
  why: { argument: 'FILE.yaml STAGE', text: 'why a stage runs, and what it continues from' },
  graph: { argument: 'FILE.yaml [STAGE]', text: 'the programs that the stages run' },
  preview: { argument: 'FILE.yaml [STAGE]', text: 'the training data as the model will see them' },
  inspect: {
    argument: 'FILE [OTHER]',
    text: 'a .dat, safetensors, golden file or checkpoint, or what two differ in',
  },
  doctor: { argument: '', text: 'this machine, the native addon, the GPU, and what to mend' },
  schema: { argument: '[NAME]', text: 'the keys of the pipeline file, of a stage, of the report' },
  explain: { argument: '[CODE]', text: 'what an error code means' },
  help: { argument: '[COMMAND]', text: 'this text' },
  version: { argument: '', text: 'the version of q4run' },
} as const;

export type CommandName = keyof typeof COMMANDS;

export interface Flags {
  readonly set: readonly string[];
  readonly only: string | undefined;
  readonly from: string | undefined;
  readonly until: string | undefined;
  readonly dryRun: boolean;
  readonly json: boolean;
  readonly runDir: string | undefined;
  readonly fresh: boolean;
  readonly quiet: boolean;
  readonly verbose: boolean;
  readonly noColor: boolean;
  readonly profile: boolean;
  readonly samples: number;
}

export interface CommandLine {
  readonly command: CommandName;
  readonly positionals: readonly string[];
  readonly flags: Flags;
}

interface FlagForm {
  /** What stands after it; none for a switch. */
  readonly value?: string;
  readonly short?: string;
  readonly text: string;
}

export const FLAGS: Readonly<Record<string, FlagForm>> = {
  '--set': { value: 'a.b=c', text: 'set a value, such as train.steps=10 (repeatable)' },
  '--only': { value: 'STAGE', text: 'run this stage and what it needs' },
  '--from': { value: 'STAGE', text: 'run this stage, those after it, and what they need' },
  '--until': { value: 'STAGE', text: 'run no stage after this one' },
  '--dry-run': { text: 'plan and check, but run nothing' },
  '--json': { text: 'events, one JSON object a line, on stdout' },
  '--run-dir': { value: 'DIR', text: 'use DIR itself as the run directory' },
  '--fresh': { text: 'start anew instead of continuing an unfinished run' },
  '--profile': { text: 'time per operation' },
  '--samples': { value: 'N', text: 'preview: how many samples (default 3)' },
  '--quiet': { short: '-q', text: 'show errors only' },
  '--verbose': { short: '-v', text: 'show more' },
  '--no-color': { text: 'no colours (as does NO_COLOR)' },
  '--help': { short: '-h', text: 'this text' },
  '--version': { short: '-V', text: 'the version of q4run' },
};

const SHORT = new Map(
  Object.entries(FLAGS).flatMap(([name, form]) => (form.short ? [[form.short, name]] : [])),
);
const DEFAULT_SAMPLES = 3;

const isCommand = (word: string): word is CommandName => Object.hasOwn(COMMANDS, word);

/** Throws Q4001 and Q4002. */
export function parseArguments(argv: readonly string[]): CommandLine {
  const words: string[] = [];
  const switches = new Set<string>();
  const values = new Map<string, string[]>();
  const rest = [...argv];
  for (let word = rest.shift(); word !== undefined; word = rest.shift()) {
    if (word === '--') {
      words.push(...rest);
      break;
    }
    if (!word.startsWith('-') || word === '-') {
      words.push(word);
      continue;
    }
    const equals = word.startsWith('--') ? word.indexOf('=') : -1;
    const spelt = equals < 0 ? word : word.slice(0, equals);
    const name = SHORT.get(spelt) ?? spelt;
    const form = FLAGS[name];
    if (form === undefined) {
      const hint = didYouMean(name, Object.keys(FLAGS)) ?? 'q4run help lists the flags';
      throw new Q4Error('Q4001', `unknown flag '${spelt}'`, { found: spelt, hint });
    }
    if (form.value === undefined) {
      if (equals >= 0) throw new Q4Error('Q4002', `${name} takes no value`, { found: word });
      switches.add(name);
      continue;
    }
    const value = equals < 0 ? rest.shift() : word.slice(equals + 1);
    if (value === undefined || value === '' || (equals < 0 && value.startsWith('--'))) {
      throw new Q4Error('Q4002', `${name} needs a value`, { expected: `${name} ${form.value}` });
    }
    values.set(name, [...(values.get(name) ?? []), value]);
  }
  const last = (name: string): string | undefined => values.get(name)?.at(-1);
  const flags: Flags = {
    set: values.get('--set') ?? [],
    only: last('--only'),
    from: last('--from'),
    until: last('--until'),
    dryRun: switches.has('--dry-run'),
    json: switches.has('--json'),
    runDir: last('--run-dir'),
    fresh: switches.has('--fresh'),
    quiet: switches.has('--quiet'),
    verbose: switches.has('--verbose'),
    noColor: switches.has('--no-color'),
    profile: switches.has('--profile'),
    samples: wholeNumber('--samples', last('--samples'), DEFAULT_SAMPLES),
  };
  if (flags.only !== undefined && (flags.from !== undefined || flags.until !== undefined)) {
    throw new Q4Error('Q4002', '--only cannot stand beside --from or --until', { hint: 'keep one of them' });
  }
  if (switches.has('--version')) return { command: 'version', positionals: [], flags };
  const [first] = words;
  if (switches.has('--help')) {
    return { command: 'help', positionals: first !== undefined && isCommand(first) ? [first] : [], flags };
  }
  if (first === undefined) return { command: 'help', positionals: [], flags };
  if (isCommand(first)) return checked({ command: first, positionals: words.slice(1), flags });
  if (/\.ya?ml$/i.test(first) || /[/.\\]/.test(first))
    return checked({ command: 'run', positionals: words, flags });
  const hint =
    didYouMean(first, Object.keys(COMMANDS)) ?? 'q4run help lists the commands; a pipeline is a .yaml file';
  throw new Q4Error('Q4001', `unknown command '${first}'`, { found: first, hint });
}

function wholeNumber(name: string, text: string | undefined, otherwise: number): number {
  if (text === undefined) return otherwise;
  if (!/^[1-9][0-9]{0,8}$/.test(text))
    throw new Q4Error('Q4002', `${name} takes a whole number from 1`, { found: text });
  return Number(text);
}

function checked(line: CommandLine): CommandLine {
  const { argument } = COMMANDS[line.command];
  const forms = argument.split(' ').filter((form) => form !== '');
  const needed = forms.filter((form) => !form.startsWith('['));
  const usage = `q4run ${line.command} ${argument}`.trim();
  if (line.positionals.length < needed.length) {
    throw new Q4Error('Q4002', `${line.command} needs ${needed[line.positionals.length]}`, {
      expected: usage,
      hint: usage,
    });
  }
  if (line.positionals.length > forms.length) {
    const extra = line.positionals[forms.length]!;
    throw new Q4Error('Q4002', `'${extra}' is one argument too many`, {
      expected: usage,
      found: extra,
      hint: usage,
    });
  }
  return line;
}
