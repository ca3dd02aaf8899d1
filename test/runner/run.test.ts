/** Whole runs with fake stages, in this process's command line and a worker of their own. */
import { existsSync, readFileSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'uvu';
import * as assert from 'uvu/assert';

import { Validator } from '../../runtime/runner/config/validator.js';
import type { RunEvent } from '../../runtime/runner/events/event.js';
import { availableMemory } from '../../runtime/runner/machine.js';
import { EXAMPLE, EXAMPLE_FILES, folder, q4run } from './fixture.js';

const setUp = () => folder(EXAMPLE_FILES);

/** Environment of the worker, for the time of `action`. */
async function withFault<T>(fault: string, action: () => Promise<T>): Promise<T> {
  process.env['FAKE_FAULT'] = fault;
  try {
    return await action();
  } finally {
    delete process.env['FAKE_FAULT'];
  }
}

const runs = (home: string): string[] => readdirSync(join(home, 'runs')).sort();
/** By when it was begun: names tell seconds only, and a test makes several runs in one. */
const newest = (home: string): string =>
  runs(home)
    .map((name) => join(home, 'runs', name))
    .sort((a, b) => statSync(join(a, 'plan.json')).mtimeMs - statSync(join(b, 'plan.json')).mtimeMs)
    .at(-1)!;
interface ReportText {
  status: string;
  exit_code: number;
  resumed: boolean;
  errors: { code: string; line?: number }[];
  stages: { id: string; status: string; outputs: Record<string, unknown> }[];
}
const report = (directory: string): ReportText =>
  JSON.parse(readFileSync(join(directory, 'report.json'), 'utf8')) as ReportText;
const eventsIn = (directory: string): RunEvent[] =>
  readFileSync(join(directory, 'events.jsonl'), 'utf8')
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as RunEvent);

test('a run leaves everything it says, by its schemas, and nothing outside', async () => {
  const home = setUp();
  const { code, events } = await q4run(home, ['p.yaml', '--json']);
  assert.is(code, 0);
  const directory = newest(home);
  assert.match(directory, /\/[0-9]{8}-[0-9]{6}-example-[0-9a-f]{8}$/);
  assert.equal(readdirSync(directory).sort(), [
    'checkpoints',
    'effective.yaml',
    'events.jsonl',
    'plan.json',
    'report.html',
    'report.json',
    'trained.dat',
  ]);
  assert.equal(readdirSync(home).sort(), ['assets', 'p.yaml', 'runs']);
  const validator = new Validator();
  assert.equal(validator.document('report', report(directory)).errors, []);
  for (const event of [...events, ...eventsIn(directory)]) {
    assert.equal(validator.document('events', event).errors, [], JSON.stringify(event));
  }
  assert.is(events.filter(({ ev }) => ev === 'step').length, 12);
  assert.is(report(directory).status, 'done');
  const train = report(directory).stages.find(({ id }) => id === 'train')!;
  assert.is((train.outputs['losses'] as number[]).length, 12);
});

test('the effective configuration runs again, to the same hash', async () => {
  const home = setUp();
  await q4run(home, ['p.yaml']);
  writeFileSync(join(home, 'again.yaml'), readFileSync(join(newest(home), 'effective.yaml')));
  assert.is((await q4run(home, ['again.yaml'])).code, 0);
  assert.is(runs(home)[0]!.slice(-8), runs(home)[1]!.slice(-8));
});

test('stdout carries data only', async () => {
  const home = setUp();
  const { out, err } = await q4run(home, ['p.yaml']);
  assert.is(out, '');
  assert.match(err, /\[train\] done: 12 steps, loss/);
  assert.is((await q4run(home, ['p.yaml', '--quiet'])).err, '');
});

test('a late reference gets its value when the stage starts', async () => {
  const home = setUp();
  writeFileSync(
    join(home, 'p.yaml'),
    EXAMPLE.replace('"Who are you?"', '"${stages.save.outputs.note}: ${stages.train.outputs.steps}"'),
  );
  const { events } = await q4run(home, ['p.yaml', '--json']);
  assert.is(events.find(({ ev }) => ev === 'answer')!['prompt'], 'a text: 12');
});

test('a late reference that does not fit is located', async () => {
  const home = setUp();
  writeFileSync(
    join(home, 'p.yaml'),
    EXAMPLE.replace('["Who are you?"]', '"${stages.train.outputs.steps}"').replace(
      'needs: [gate]',
      'needs: [gate, train]',
    ),
  );
  const wrong = await q4run(home, ['p.yaml']);
  assert.is(wrong.code, 3);
  assert.match(
    wrong.err,
    /p\.yaml:24:\d+: error\[Q4104\]: 'prompts' of stage 'ask' must be a list, found 12/,
  );
  writeFileSync(join(home, 'p.yaml'), EXAMPLE.replace('"Who are you?"', '"${stages.train.outputs.lossse}"'));
  const missing = await q4run(home, ['p.yaml']);
  assert.is(missing.code, 3);
  assert.match(missing.err, /p\.yaml:24:\d+: error\[Q4110\]: the stage 'train' has no output 'lossse'/);
});

test('thresholds without a value follow the precision', async () => {
  const home = setUp();
  const of = async (precision: string) => {
    await q4run(home, [
      'p.yaml',
      '--set',
      `runtime.precision=${precision}`,
      '--set',
      'gate.thresholds.kl_max=7',
    ]);
    const outputs = report(newest(home)).stages.find(({ id }) => id === 'gate')!.outputs;
    return outputs['thresholds'] as Record<string, unknown>;
  };
  assert.equal([(await of('fp32'))['hidden_rel_l2'], (await of('bf16'))['hidden_rel_l2']], [1e-5, 0.025]);
  assert.is((await of('bf16'))['kl_max'], 7);
});

const ENDS: readonly [name: string, fault: string, code: number, status: string, error: string][] = [
  ['a gate that says no', 'gate', 6, 'gate', 'Q4601'],
  ['a native crash', 'segfault', 7, 'crashed', 'Q4702'],
  ['a mistake of ours', 'throw', 1, 'bug', 'Q4900'],
  ['divergence', 'diverge', 9, 'diverged', 'Q4801'],
  ['a plan that does not fit', 'huge', 4, 'refused', 'Q4401'],
];
for (const [name, fault, code, status, error] of ENDS) {
  test(`exit ${code}: ${name}`, async () => {
    const home = setUp();
    const outcome = await withFault(fault, () => q4run(home, ['p.yaml', '--json']));
    assert.is(outcome.code, code);
    const found = report(newest(home));
    assert.is(found.status, status);
    assert.is(found.exit_code, code);
    assert.is(found.errors[0]!.code, error);
    assert.ok(outcome.events.some((event) => event.ev === 'error' && event['code'] === error));
    assert.equal(new Validator().document('report', found).errors, []);
    assert.ok(existsSync(join(newest(home), 'report.html')));
    assert.not.ok(existsSync(join(newest(home), '.lock')));
  });
}

test('a crash names the last checkpoint, and the same command goes on from there', async () => {
  const home = setUp();
  const sets = ['--set', 'train.checkpoint.every=1'];
  const crashed = await withFault('segfault', () => q4run(home, ['p.yaml', ...sets]));
  assert.match(
    crashed.err,
    /the worker was ended by SIGSEGV: the last checkpoint is \S+checkpoints\/train\/step-2/,
  );
  const { code, events, err } = await q4run(home, ['p.yaml', ...sets, '--json']);
  assert.is(code, 0, err);
  assert.is(runs(home).length, 1);
  assert.is(events.find(({ ev }) => ev === 'step')!['step'], 3);
  assert.is(report(newest(home)).resumed, true);
});

test('missing inputs are told together, with their places', async () => {
  const home = setUp();
  rmSync(join(home, 'assets/config.json'));
  rmSync(join(home, 'assets/data.jsonl'));
  const { code, err } = await q4run(home, ['p.yaml']);
  assert.is(code, 4);
  assert.match(err, /p\.yaml:8:57: error\[Q4411\]: config of stage 'weights' does not exist/);
  assert.match(err, /p\.yaml:16:21: error\[Q4411\]: data\.path of stage 'train' does not exist/);
});

test('a finished run is run again elsewhere; --run-dir says up to date', async () => {
  const home = setUp();
  await q4run(home, ['p.yaml', '--run-dir', 'here']);
  assert.ok(existsSync(join(home, 'here/report.json')));
  const again = await q4run(home, ['p.yaml', '--run-dir', 'here', '--json']);
  assert.is(again.code, 0);
  assert.equal(
    again.events.map(({ ev }) => ev),
    ['up-to-date'],
  );
  const other = await q4run(home, ['p.yaml', '--run-dir', 'here', '--set', 'train.steps=13']);
  assert.is(other.code, 2);
  assert.match(other.err, /Q4005/);
  const fresh = await q4run(home, [
    'p.yaml',
    '--run-dir',
    'here',
    '--set',
    'train.steps=13',
    '--fresh',
    '--json',
  ]);
  assert.is(fresh.code, 0);
  assert.is(fresh.events.find(({ ev }) => ev === 'step')!['step'], 1);
  assert.not.ok(existsSync(join(home, 'runs')));
});

test('a changed input file makes another run', async () => {
  const home = setUp();
  await withFault('gate', () => q4run(home, ['p.yaml']));
  writeFileSync(join(home, 'assets/data.jsonl'), '{"other":1}\n');
  const { err } = await q4run(home, ['p.yaml']);
  assert.match(err, /not continuing \S+: \S+data\.jsonl has changed since/);
  assert.is(runs(home).length, 2);
});

test('--only, --from and --until run a part and what it needs', async () => {
  const home = setUp();
  const stages = async (...flags: string[]) => {
    const { events } = await q4run(home, ['p.yaml', '--json', ...flags]);
    return events.filter(({ ev }) => ev === 'stage-start').map((event) => event['stage']);
  };
  assert.equal(await stages('--until', 'model'), ['weights', 'model']);
  assert.equal(await stages('--only', 'train'), ['weights', 'model', 'train']);
  assert.equal(await stages('--from', 'gate', '--until', 'gate'), [
    'weights',
    'model',
    'train',
    'save',
    'gate',
  ]);
  const unknown = await q4run(home, ['p.yaml', '--only', 'trian']);
  assert.is(unknown.code, 2);
  assert.match(unknown.err, /Q4004\]: there is no stage 'trian': did you mean 'train'\?/);
});

test('plan, --dry-run, graph, preview, why and doctor leave nothing behind', async () => {
  const home = setUp();
  const before = readdirSync(home, { recursive: true }).length;
  const plan = await q4run(home, ['plan', 'p.yaml']);
  assert.is(plan.code, 0);
  assert.match(plan.out, /masters\s+2\.0 KiB/);
  const steady = (text: string) => text.replace(/\S+ \S+ free/, '');
  assert.is(steady((await q4run(home, ['p.yaml', '--dry-run'])).out), steady(plan.out));
  assert.match((await q4run(home, ['graph', 'p.yaml'])).out, /# train: step\nsteps 12/);
  assert.match(
    (await q4run(home, ['preview', 'p.yaml', '--samples', '5'])).out,
    /5 samples for planned model/,
  );
  assert.match((await q4run(home, ['why', 'p.yaml', 'train'])).out, /needed by save, gate, ask/);
  assert.match((await q4run(home, ['doctor'])).out, /cpu +Pretend/);
  assert.is((await withFault('huge', () => q4run(home, ['plan', 'p.yaml']))).code, 4);
  assert.is(readdirSync(home, { recursive: true }).length, before);
});

test('check and config', async () => {
  const home = setUp();
  assert.match((await q4run(home, ['check', 'p.yaml'])).err, /^ok p\.yaml: weights → model/);
  writeFileSync(
    join(home, 'bad.yaml'),
    EXAMPLE.replace('batch_size: 8', 'batch_sise: 8').replace('steps: 12', 'steps: 0'),
  );
  const bad = await q4run(home, ['check', 'bad.yaml', '--json']);
  assert.is(bad.code, 3);
  assert.equal(
    bad.events.map((event) => [event.ev, event['code'], event['line'], event['col']]),
    [
      ['error', 'Q4105', 17, 14],
      ['error', 'Q4103', 18, 7],
    ],
  );
  assert.match(
    bad.err,
    /bad\.yaml:18:7: error\[Q4103\]: unknown key 'batch_sise' in stage 'train': did you mean 'batch_size'\?/,
  );
  const config = await q4run(home, ['config', 'p.yaml', '--set', 'train.steps=3']);
  assert.match(config.out, /^ {6}steps: 3 +# --set train\.steps=3$/m);
  assert.match(config.out, /^ {6}batch_size: 8 +# p\.yaml:18:19$/m);
  assert.match(config.out, /^ {6}seq_len: 128 +# default$/m);
});

test('exit 8: the memory guard asks for a checkpoint', async () => {
  const home = setUp();
  // A reserve that the machine does not have, but has more than a quarter of.
  const reserve = Math.ceil((availableMemory() / 1024 / 1024) * 1.6);
  process.env['FAKE_STEP_MS'] = '50';
  const flags = ['--set', 'train.steps=400', '--set', `runtime.host_reserve_mib=${reserve}`];
  const { code, err } = await withFault('weightless', () => q4run(home, ['p.yaml', ...flags]));
  delete process.env['FAKE_STEP_MS'];
  assert.is(code, 8, err);
  assert.match(err, /of memory is left: saving a checkpoint and stopping/);
  assert.match(err, /error\[Q4703\]: stopped by the memory guard/);
  assert.is(report(newest(home)).status, 'memory');
  // Another reserve is no other run.
  assert.is((await q4run(home, ['p.yaml', '--set', 'train.steps=400'])).code, 0);
  assert.is(runs(home).length, 1);
});

test('values are disposed once each', async () => {
  const home = setUp();
  process.env['FAKE_DISPOSE_LOG'] = join(home, 'log');
  await q4run(home, ['p.yaml']);
  delete process.env['FAKE_DISPOSE_LOG'];
  assert.is(readFileSync(join(home, 'log'), 'utf8'), 'disposed\n');
});

test.run();
