/**
 * Renders Jinja within limits. The only file that knows @huggingface/jinja. Templates come with models from elsewhere:
 * a 43-byte one can exhaust memory, so steps and the size of every intermediate value are bounded, and there is no
 * clock, so that the same messages always give the same prompt.
 */
import * as library from '@huggingface/jinja';
import { Q4Error } from '../errors.js';

/** What is used of the library, whose own types do not resolve under NodeNext. */
interface Environment {
  set(name: string, value: unknown): unknown;
}
interface RuntimeValue {
  readonly value: unknown;
}
interface Node {
  readonly type: string;
}
interface Interpreter {
  run(program: object): RuntimeValue;
  evaluate(statement: Node | undefined, environment: Environment): RuntimeValue;
}
interface Template {
  readonly parsed: object;
}
const { Environment, Interpreter, Template } = library as unknown as {
  Environment: new () => Environment;
  Interpreter: new (environment: Environment) => Interpreter;
  Template: new (source: string) => Template;
};

const LONGEST_SOURCE = 256 * 1024;
const MOST_STEPS = 500_000;
const LONGEST_TEXT = 16 * 1024 * 1024;
const LONGEST_LIST = 100_000;

class LimitExceeded extends Error {}
/** What a template says through raise_exception. */
class Raised extends Error {}

/** Characters of a made text that cost as much as one step. */
const CHARACTERS_A_STEP = 256;

/** Nodes that a `for` goes over: each of their entries costs a step, even where the loop's body is empty. */
function iterables(node: unknown, found = new WeakSet<object>()): WeakSet<object> {
  if (typeof node !== 'object' || node === null) return found;
  const { type, iterable } = node as { type?: unknown; iterable?: { lhs?: object } };
  if (type === 'For' && iterable) found.add(iterable).add(iterable.lhs ?? iterable);
  for (const child of node instanceof Map ? [...node.keys(), ...node.values()] : Object.values(node))
    iterables(child, found);
  return found;
}

class LimitedInterpreter extends Interpreter {
  #steps = 0;
  readonly #iterables: WeakSet<object>;

  constructor(environment: Environment, iterated: WeakSet<object>) {
    super(environment);
    this.#iterables = iterated;
  }

  override evaluate(statement: Node | undefined, environment: Environment): RuntimeValue {
    this.#spend(1);
    const result = super.evaluate(statement, environment);
    const { value } = result;
    // Naming a value that is there already is free; making one or going over one is not.
    const isNew = statement?.type !== 'Identifier' || this.#iterables.has(statement);
    if (typeof value === 'string') {
      if (value.length > LONGEST_TEXT)
        throw new LimitExceeded(`a text of more than ${LONGEST_TEXT} characters`);
      if (isNew) this.#spend(Math.floor(value.length / CHARACTERS_A_STEP));
    } else if (Array.isArray(value)) {
      if (value.length > LONGEST_LIST) throw new LimitExceeded(`a list of more than ${LONGEST_LIST} entries`);
      if (isNew) this.#spend(value.length);
    } else if (value instanceof Map && isNew) this.#spend(value.size);
    return result;
  }

  #spend(steps: number): void {
    this.#steps += steps;
    if (this.#steps > MOST_STEPS) throw new LimitExceeded(`more than ${MOST_STEPS} steps`);
  }
}

/** Jinja's range(stop) or range(start, stop[, step]). */
function range(first: number, second?: number, step = 1): number[] {
  const [start, stop] = second === undefined ? [0, first] : [first, second];
  const length = step === 0 ? Infinity : Math.max(0, Math.ceil((stop - start) / step));
  if (!(length <= LONGEST_LIST)) throw new LimitExceeded(`a range of more than ${LONGEST_LIST} numbers`);
  return Array.from({ length }, (_, i) => start + i * step);
}

function environment(variables: Readonly<Record<string, unknown>>): Environment {
  const env = new Environment();
  const globals = {
    true: true,
    false: false,
    none: null,
    True: true,
    False: false,
    None: null,
    range,
    raise_exception: (message: unknown): never => {
      throw new Raised(String(message));
    },
  };
  for (const [name, value] of Object.entries({ ...variables, ...globals })) env.set(name, value);
  return env;
}

export interface SandboxedTemplate {
  /** @throws Q4303 what the template or the language objects to; Q4304 a limit */
  render(variables: Readonly<Record<string, unknown>>): string;
}

/** @throws Q4302 where the source is not Jinja that we can run */
export function compileTemplate(source: string, file: string): SandboxedTemplate {
  const refuse = (message: string, cause?: unknown): Q4Error =>
    new Q4Error('Q4302', message, { file, ...(cause === undefined ? {} : { cause }) });
  if (source.length > LONGEST_SOURCE)
    throw refuse(`the chat template has ${source.length} characters; at most ${LONGEST_SOURCE} are read`);
  let template: Template;
  try {
    template = new Template(source);
  } catch (cause) {
    throw refuse(`the chat template is not valid Jinja: ${(cause as Error).message}`, cause);
  }
  const iterated = iterables(template.parsed);
  return {
    render(variables) {
      try {
        const result = new LimitedInterpreter(environment(variables), iterated).run(template.parsed).value;
        if (typeof result !== 'string') throw new Error('it renders no text');
        return result;
      } catch (cause) {
        const message = (cause as Error).message;
        if (cause instanceof LimitExceeded || cause instanceof RangeError)
          throw new Q4Error('Q4304', `the chat template was stopped: ${message}`, { file, cause });
        const said = cause instanceof Raised ? 'refuses these messages' : 'failed';
        const hint =
          'The template asks for the date (strftime_now): prompts that change with the clock are not made.';
        throw new Q4Error('Q4303', `the chat template ${said}: ${message}`, {
          file,
          cause,
          ...(source.includes('strftime_now') ? { hint } : {}),
        });
      }
    },
  };
}
