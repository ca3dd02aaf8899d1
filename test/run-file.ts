/** The child of run.ts: imports one test file with uvu held back, runs its suites and sends the counts. */
import { pathToFileURL } from 'node:url';

export interface FileCounts {
  readonly total: number;
  readonly passed: number;
  readonly skipped: number;
}

/** What uvu's `test.run()` queues: a suite that resolves to [errors or true, passed, skipped, total]. */
type Suite = () => Promise<[errors: string | true, passed: number, skipped: number, total: number]>;

declare global {
  // uvu's own globals: with UVU_DEFER set it queues suites instead of running them.
  var UVU_DEFER: 1 | undefined;
  var UVU_INDEX: number | undefined;
  var UVU_QUEUE: Suite[][] | undefined;
}

/** Without run.ts nobody waits for this file: end it, and every process that it started. */
let reported = false;
process.on('disconnect', () => {
  if (!reported) process.kill(0, 'SIGKILL');
});

const file = process.argv[2];
if (file === undefined) throw new Error('usage: run-file.ts FILE');

const suites: Suite[] = [];
globalThis.UVU_DEFER = 1;
globalThis.UVU_INDEX = 0;
globalThis.UVU_QUEUE = [suites];

await import(pathToFileURL(file).href);

let total = 0;
let passed = 0;
let skipped = 0;
for (const suite of suites) {
  const [errors, ran, skips, count] = await suite();
  total += count;
  passed += ran;
  skipped += skips;
  if (typeof errors === 'string' && errors !== '') console.log(`\n${errors}`);
}
process.send?.({ total, passed, skipped } satisfies FileCounts, () => {
  reported = true;
  process.disconnect();
});
