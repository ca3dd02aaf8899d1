/**
 * Renders Jinja within limits. The only file that knows @huggingface/jinja. Templates come with models from elsewhere:
 * a 43-byte one can exhaust memory, so steps and the size of every intermediate value are bounded, and there is no
 * clock, so that the same messages always give the same prompt.
 */
import { Environment, Interpreter, Template } from '@huggingface/jinja';
import { Q4Error } from '../errors.js';

const LONGEST_SOURCE = 256 * 1024;
const MOST_STEPS = 2_000_000;
const LONGEST_TEXT = 16 * 1024 * 1024;
const LONGEST_LIST = 1_000_000;

class LimitExceeded extends Error {}
/** What a template says through raise_exception. */
class Raised extends Error {}

type Evaluate = Interpreter['evaluate'];

class LimitedInterpreter extends Interpreter {
  #steps = 0;

  override evaluate(...args: Parameters<Evaluate>): ReturnType<Evaluate> {
    if (++this.#steps > MOST_STEPS) throw new LimitExceeded(`more than ${MOST_STEPS} steps`);
    const result = super.evaluate(...args);
    const value: unknown = result.value;
    if (typeof value === 'string' && value.length > LONGEST_TEXT)
      throw new LimitExceeded(`a text of more than ${LONGEST_TEXT} characters`);
    if (Array.isArray(value) && value.length > LONGEST_LIST)
      throw new LimitExceeded(`a list of more than ${LONGEST_LIST} entries`);
    return result;
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
  return {
    render(variables) {
      try {
        const result: unknown = new LimitedInterpreter(environment(variables)).run(template.parsed).value;
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
