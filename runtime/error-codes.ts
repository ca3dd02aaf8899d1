/**
 * Every error code: the exit code it leads to, a title, and what `q4run explain` says. doc/errors.md is made from this
 * table. Ranges: 40 command line · 41 pipeline file · 42 weight, config and tokenizer files · 43 text and data ·
 * 44 device, memory, disk · 45 programs and stages · 46 gates · 47 worker and signals · 48 divergence · 49 bugs.
 */
export interface CodeEntry {
  readonly exit: number;
  readonly title: string;
  readonly explain: string;
}

const entry = (exit: number, title: string, explain: string): CodeEntry => ({ exit, title, explain });

export const ERROR_CODES = {
  Q4401: entry(
    4,
    'out of memory',
    'The device (or, on the CPU, the machine) has less free memory than the plan needs. The message names what was asked and what is free. Lower batch_size or seq_len, set recompute: block, or use masters: bf16.',
  ),
  Q4402: entry(
    4,
    'no usable CUDA device',
    'runtime.device asks for CUDA, but the build has none or the machine offers no usable GPU. q4run never falls back to the CPU silently: set runtime.device: cpu or auto, or install the driver. `q4run doctor` says what is missing.',
  ),
  Q4404: entry(
    4,
    'native addon does not load',
    'The compiled part of q4run is missing or was built for another machine. Run `npm run build:native` in the package; `q4run doctor` shows what was found.',
  ),
  Q4501: entry(5, 'cancelled', 'A program was cancelled before it ended.'),
  Q4510: entry(
    1,
    'invalid program',
    'A program handed to the native runtime names an unknown op or dtype, or its shapes do not match the op. Programs are made by q4run itself, so this is a bug: please report it with the output of `q4run graph`.',
  ),
  Q4511: entry(
    1,
    'unknown tensor',
    'A program or stage used a tensor that the store does not hold (or holds already, or with another type). This is a bug in q4run: please report it.',
  ),
  Q4512: entry(
    5,
    'operation not supported here',
    'The device cannot run this op with this element type or shape. On the CPU use precision: fp32.',
  ),
  Q4513: entry(
    1,
    'device busy',
    'Something touched device memory while a program was running on it. This is a bug in q4run: please report it.',
  ),
  Q4514: entry(
    1,
    'invalid native handle',
    'A native object was used after it was disposed, or with an argument of the wrong kind. This is a bug in q4run: please report it.',
  ),
  Q4701: entry(
    7,
    'device fault',
    'The GPU reported an error while running a program. The run cannot go on in this process; the last checkpoint is kept.',
  ),
  Q4900: entry(
    1,
    'internal error',
    'Something happened that q4run did not expect. Please report it with the events.jsonl of the run.',
  ),
} as const satisfies Record<string, CodeEntry>;

export type ErrorCode = keyof typeof ERROR_CODES;
