/**
 * Malformed inputs from end to end: each through the command line, with its code, its exit code, its place and what to
 * do about it, and nothing half-made left behind.
 */
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'uvu';
import * as assert from 'uvu/assert';

import type { EventBody } from '../../runtime/runner/events/event.js';
import { dat, E4M3, entry, leb, quantised, TYPE } from '../native/file-bytes.js';
import { configJson, goldenCase } from './golden-case.js';
import { runHere } from './in-process.js';
import { errorsIn, folder, q4run, readReport, ROOT } from './q4run.js';
import { leftovers, tokenData } from './training-run.js';

type Files = Record<string, string | Uint8Array>;

const good = goldenCase({ seed: 21, greedyPrompt: null, tokens: 3, batch: 1 });
const DAT = Buffer.from(good.files['model.dat'] as Uint8Array);
const TOKENIZER = readFileSync(join(ROOT, 'pipelines/assets/qwen3-tiny/tokenizer.json'), 'utf8');
const TOKENIZER_CONFIG = readFileSync(
  join(ROOT, 'pipelines/assets/qwen3-tiny/tokenizer_config.json'),
  'utf8',
);

const PIPELINE = `version: 1
name: bad
stages:
  - id: weights
    uses: load-dat
    with: { weights: model.dat, config: config.json }
  - id: model
    uses: build-model
    needs: [weights]
  - id: train
    uses: train
    needs: [model]
    with:
      data: { path: data.jsonl }
      steps: 2
      batch_size: 2
      seq_len: 16
  - { id: save, uses: checkpoint, needs: [train], with: { export: trained.dat } }
`;
const GOOD: Files = {
  'p.yaml': PIPELINE,
  'model.dat': DAT,
  'config.json': configJson(good.config),
  'data.jsonl': tokenData(61, 8),
};

interface Case {
  readonly what: string;
  readonly files: Files;
  readonly code: string;
  readonly exit: 3 | 4 | 5;
  /** The file that is at fault, and where in it. */
  readonly file: string;
  readonly line?: number;
  readonly offset?: number;
  readonly entry?: RegExp;
  /** In the message, the expectation or the hint. */
  readonly says?: RegExp;
}

/** Where an entry's name stands, and what comes after it. */
const after = (name: string): number => DAT.indexOf(name) + name.length;
function patched(at: number, bytes: readonly number[]): Buffer {
  const copy = Buffer.from(DAT);
  Buffer.from(bytes).copy(copy, at);
  return copy;
}
/** Of the scale entry: type, rank and two dimensions (one byte each here) come before the payload. */
const SCALE = 'model.layers.1.mlp.up_proj.weight.scale';
const NORM = 'model.layers.2.input_layernorm.weight';
const count = DAT[0]!; // entries, as a LEB128 of one byte
const again = (extra: Buffer): Buffer => {
  const copy = Buffer.concat([DAT, extra]);
  copy[0] = count + 1;
  return copy;
};
const weights = (bytes: Uint8Array): Files => ({ 'model.dat': bytes });
const config = (changes: object): Files => ({ 'config.json': configJson(good.config, changes) });
const yaml = (from: string | RegExp, to: string): Files => ({ 'p.yaml': PIPELINE.replace(from, to) });
const data = (text: string): Files => ({ 'data.jsonl': text });
const withTokenizer = (tokenizer: string, more: Files = {}): Files => ({
  'p.yaml': PIPELINE.replace('config: config.json', 'config: config.json, tokenizer: tok'),
  'tok/tokenizer.json': tokenizer,
  'tok/tokenizer_config.json': TOKENIZER_CONFIG,
  ...more,
});

assert.ok(count < 0x7f && DAT.indexOf(SCALE) > 0);

const WEIGHTS: readonly Case[] = [
  { what: 'an empty .dat', files: weights(Buffer.alloc(0)), code: 'Q4203', exit: 4, file: 'model.dat', offset: 0 },
  { what: 'a .dat cut in its last tensor', files: weights(DAT.subarray(0, -1)), code: 'Q4210', exit: 4, file: 'model.dat', entry: /lm_head/ },
  { what: 'a .dat cut in a header', files: weights(DAT.subarray(0, DAT.indexOf(NORM) + 9)), code: 'Q4203', exit: 4, file: 'model.dat' },
  { what: 'a byte too many', files: weights(Buffer.concat([DAT, Buffer.from([0])])), code: 'Q4204', exit: 4, file: 'model.dat', offset: DAT.length },
  { what: 'an impossible count', files: weights(Buffer.concat([leb(2 ** 40), DAT.subarray(1)])), code: 'Q4207', exit: 4, file: 'model.dat', offset: 0 },
  { what: 'a count not minimal', files: weights(Buffer.concat([leb(count, 3), DAT.subarray(1)])), code: 'Q4222', exit: 4, file: 'model.dat', offset: 0 },
  { what: 'a name that is not UTF-8', files: weights(patched(DAT.indexOf(NORM), [0xff])), code: 'Q4212', exit: 4, file: 'model.dat' },
  { what: 'a name with a path', files: weights(again(entry({ name: '../../x', type: TYPE.u8, shape: [1], payload: 1 }))), code: 'Q4213', exit: 4, file: 'model.dat', offset: DAT.length },
  { what: 'a name twice', files: weights(again(entry({ name: NORM, type: TYPE.f32, shape: [1], payload: 4 }))), code: 'Q4214', exit: 4, file: 'model.dat', entry: /input_layernorm/ },
  { what: 'an unknown element type', files: weights(patched(after(NORM), [42])), code: 'Q4215', exit: 4, file: 'model.dat', entry: /input_layernorm/ },
  { what: 'codes without scales', files: weights(again(entry(quantised('extra.weight', 2, 32, false)[0]!))), code: 'Q4216', exit: 4, file: 'model.dat', entry: /extra/ },
  { what: 'scales of another shape than the codes', files: weights(Buffer.concat([leb(count + 2), DAT.subarray(1), entry(quantised('extra.weight', 2, 32, false)[0]!), entry({ name: 'extra.weight.scale', type: E4M3, shape: [2, 3], payload: 6 })])), code: 'Q4217', exit: 4, file: 'model.dat', entry: /extra/ },
  { what: 'a scale that is NaN', files: weights(patched(after(SCALE) + 4, [0x7f])), code: 'Q4219', exit: 4, file: 'model.dat', entry: /up_proj/ },
  { what: 'a negative scale', files: weights(patched(after(SCALE) + 9, [0xb8])), code: 'Q4219', exit: 4, file: 'model.dat', entry: /up_proj/ },
  { what: 'a weight that is NaN', files: weights(patched(after(NORM) + 3, [0, 0, 0xc0, 0x7f])), code: 'Q4220', exit: 4, file: 'model.dat', entry: /input_layernorm/ },
  { what: 'a weight that is infinite', files: weights(patched(after(NORM) + 7, [0, 0, 0x80, 0x7f])), code: 'Q4220', exit: 4, file: 'model.dat', entry: /input_layernorm/ },
  { what: 'no entries at all', files: weights(dat()), code: 'Q4281', exit: 4, file: 'model.dat', says: /embed_tokens/ },
  { what: 'an entry that no parameter asks for', files: weights(again(entry({ name: 'extra.weight', type: TYPE.f32, shape: [1], payload: 4 }))), code: 'Q4282', exit: 4, file: 'model.dat', says: /extra\.weight/ },
  { what: 'a .dat of a deeper model', files: config({ num_hidden_layers: 2 }), code: 'Q4282', exit: 4, file: 'model.dat', says: /model\.layers\.2/ },
  { what: 'a .dat of a shallower model', files: config({ num_hidden_layers: 4 }), code: 'Q4281', exit: 4, file: 'model.dat', says: /model\.layers\.3/ },
  { what: 'a .dat of a wider model', files: config({ intermediate_size: 64 }), code: 'Q4283', exit: 4, file: 'model.dat', entry: /mlp/ },
  { what: 'no .dat at all', files: yaml('weights: model.dat', 'weights: gone.dat'), code: 'Q4411', exit: 4, file: 'p.yaml', line: 6, says: /gone\.dat/ },
  { what: 'a folder for a .dat', files: yaml('weights: model.dat', 'weights: .'), code: 'Q4202', exit: 4, file: '' },
]; // prettier-ignore

const CONFIGS: readonly Case[] = [
  { what: 'a config that is no JSON', files: { 'config.json': '{ "vocab_size": 61,\n  }' }, code: 'Q4275', exit: 4, file: 'config.json', line: 2 },
  { what: 'a config without hidden_size', files: config({ hidden_size: undefined }), code: 'Q4272', exit: 4, file: 'config.json', says: /hidden_size/ },
  { what: 'a config with a negative size', files: config({ vocab_size: -5 }), code: 'Q4271', exit: 4, file: 'config.json', says: /vocab_size/ },
  { what: 'heads that do not share kv heads evenly', files: config({ num_key_value_heads: 4 }), code: 'Q4271', exit: 4, file: 'config.json', says: /num_key_value_heads/ },
  { what: 'another model type', files: config({ model_type: 'llama' }), code: 'Q4274', exit: 4, file: 'config.json', says: /llama/ },
  { what: 'a mixture of experts', files: config({ num_experts: 8 }), code: 'Q4273', exit: 4, file: 'config.json', says: /num_experts/ },
  { what: 'scaled RoPE', files: config({ rope_scaling: { rope_type: 'yarn', factor: 4 } }), code: 'Q4273', exit: 4, file: 'config.json', says: /yarn/ },
  { what: 'a sliding window', files: config({ use_sliding_window: true, sliding_window: 64 }), code: 'Q4273', exit: 4, file: 'config.json', says: /sliding/ },
]; // prettier-ignore

const TOKENIZERS: readonly Case[] = [
  { what: 'a tokenizer that is no JSON', files: withTokenizer('{"model":'), code: 'Q4260', exit: 4, file: 'tokenizer.json', line: 1 },
  { what: 'a tokenizer without a model', files: withTokenizer('{}'), code: 'Q4261', exit: 4, file: 'tokenizer.json' },
  { what: 'a tokenizer of another kind', files: withTokenizer(TOKENIZER.replace('"type":"BPE"', '"type":"Unigram"').replace('"type": "BPE"', '"type": "Unigram"')), code: 'Q4262', exit: 4, file: 'tokenizer.json', says: /Unigram/ },
  { what: 'a tokenizer larger than the vocabulary', files: withTokenizer(TOKENIZER), code: 'Q4263', exit: 4, file: 'tokenizer.json', says: /61/ },
]; // prettier-ignore

const YAMLS: readonly Case[] = [
  { what: 'broken YAML', files: yaml('stages:', 'stages: ['), code: 'Q4101', exit: 3, file: 'p.yaml' },
  { what: 'a tab', files: yaml('    uses: load-dat', '\tuses: load-dat'), code: 'Q4101', exit: 3, file: 'p.yaml', line: 5 },
  { what: 'a key twice', files: yaml('      steps: 2', '      steps: 2\n      steps: 3'), code: 'Q4102', exit: 3, file: 'p.yaml', line: 16 },
  { what: 'a misspelt key', files: yaml('batch_size', 'bath_size'), code: 'Q4103', exit: 3, file: 'p.yaml', line: 16, says: /batch_size/ },
  { what: 'a word for a number', files: yaml('steps: 2', 'steps: two'), code: 'Q4104', exit: 3, file: 'p.yaml', line: 15 },
  { what: 'no steps', files: yaml('steps: 2', 'steps: 0'), code: 'Q4105', exit: 3, file: 'p.yaml', line: 15 },
  { what: 'a learning rate of 1e30', files: yaml('steps: 2', 'steps: 2\n      learning_rate: 1.0e+30'), code: 'Q4105', exit: 3, file: 'p.yaml', line: 16, says: /10/ },
  { what: 'an unknown stage', files: yaml('uses: train', 'uses: trian'), code: 'Q4106', exit: 3, file: 'p.yaml', line: 11, says: /train/ },
  { what: 'no data', files: yaml('      data: { path: data.jsonl }\n', ''), code: 'Q4107', exit: 3, file: 'p.yaml', says: /data/ },
  { what: 'steps and epochs', files: yaml('steps: 2', 'steps: 2\n      epochs: 1'), code: 'Q4108', exit: 3, file: 'p.yaml' },
  { what: 'an alias of nothing', files: yaml('steps: 2', 'steps: *n'), code: 'Q4109', exit: 3, file: 'p.yaml', line: 15 },
  { what: 'a variable that is not set', files: yaml('steps: 2', 'steps: ${vars.n}'), code: 'Q4110', exit: 3, file: 'p.yaml', line: 15 },
  { what: 'an id twice', files: yaml('id: save', 'id: train'), code: 'Q4112', exit: 3, file: 'p.yaml', line: 18 },
  { what: 'a need of nothing', files: yaml('needs: [model]', 'needs: [modle]'), code: 'Q4113', exit: 3, file: 'p.yaml', line: 12, says: /model/ },
  { what: 'a stage that lacks its input', files: yaml('needs: [model]', 'needs: [weights]'), code: 'Q4114', exit: 3, file: 'p.yaml' },
  { what: 'version 2', files: yaml('version: 1', 'version: 2'), code: 'Q4115', exit: 3, file: 'p.yaml', line: 1 },
  { what: 'products that are not there yet', files: yaml('needs: [weights]', 'needs: [weights]\n    with: { compute: w4a4 }'), code: 'Q4116', exit: 3, file: 'p.yaml', line: 10, says: /w4a16/ },
  { what: 'freezing nothing', files: yaml('needs: [weights]', 'needs: [weights]\n    with: { freeze: [model.layer.*] }'), code: 'Q4502', exit: 5, file: 'p.yaml', line: 10, says: /model\.layers/ },
  { what: 'training without masters', files: yaml('needs: [weights]', 'needs: [weights]\n    with: { masters: none }'), code: 'Q4502', exit: 5, file: 'p.yaml', says: /masters/ },
  { what: 'a memory limit', files: yaml('steps: 2', 'steps: 2\n      memory: { limit_gib: 0.0001 }'), code: 'Q4405', exit: 4, file: 'p.yaml', line: 16 },
  { what: 'more memory than there is', files: yaml(/batch_size: 2\n {6}seq_len: 16/, 'batch_size: 65536\n      seq_len: 65536'), code: 'Q4401', exit: 4, file: '', says: /batch_size/ },
  { what: 'a CUDA device that is not there', files: yaml('stages:', 'runtime: { device: "cuda:63" }\nstages:'), code: 'Q4402', exit: 4, file: 'p.yaml', line: 3 },
]; // prettier-ignore

const LINE = '{"input_ids":[1,2,3,4]}\n';
const DATA: readonly Case[] = [
  { what: 'a data line that is no JSON', files: data(`${LINE}{"input_ids":[1,2\n`), code: 'Q4310', exit: 4, file: 'data.jsonl', line: 2 },
  { what: 'labels of another length', files: data(`${LINE}{"input_ids":[1,2,3],"labels":[1]}\n`), code: 'Q4311', exit: 4, file: 'data.jsonl', line: 2 },
  { what: 'data of two formats', files: data(`${LINE}{"text":"hello"}\n`), code: 'Q4312', exit: 4, file: 'data.jsonl', line: 2 },
  { what: 'a sample that trains nothing', files: data(`${LINE}{"input_ids":[1,2,3],"labels":[-100,-100,-100]}\n`), code: 'Q4313', exit: 4, file: 'data.jsonl', line: 2 },
  { what: 'a token outside the vocabulary', files: data(`${LINE}${LINE}{"input_ids":[1,61]}\n`), code: 'Q4314', exit: 4, file: 'data.jsonl', line: 3, says: /60|61/ },
  { what: 'an empty data file', files: data(''), code: 'Q4315', exit: 4, file: 'data.jsonl' },
  { what: 'text without a tokenizer', files: data('{"text":"hello"}\n'), code: 'Q4317', exit: 4, file: 'data.jsonl', says: /tokenizer/ },
  { what: 'data that is not UTF-8', files: { 'data.jsonl': Buffer.concat([Buffer.from(LINE + LINE), Buffer.from([0x7b, 0xff, 0x0a])]) }, code: 'Q4411', exit: 4, file: 'data.jsonl', line: 3 },
]; // prettier-ignore

const CASES = [...WEIGHTS, ...CONFIGS, ...TOKENIZERS, ...YAMLS, ...DATA];

/** Places in the pipeline file are found by the supervisor; of the other cases one a group goes the whole way. */
const THROUGH_CLI = new Set(
  [WEIGHTS, CONFIGS, TOKENIZERS, YAMLS, DATA].flatMap((group) =>
    group
      .filter(({ file }, i) => i === 0 || !file.includes('.') || file === 'p.yaml')
      .map(({ what }) => what),
  ),
);

interface Told {
  readonly error: EventBody | undefined;
  readonly found: number;
  /** What people see; null without a command line. */
  readonly display: string | null;
}
async function byCommand(cwd: string): Promise<Told> {
  const outcome = await q4run(cwd, 'p.yaml', '--run-dir', 'run');
  return { error: errorsIn(outcome)[0], found: outcome.code, display: outcome.err };
}
async function byStages(cwd: string): Promise<Told> {
  const here = await runHere(cwd, 'p.yaml');
  return { error: here.errors[0], found: here.exit, display: null };
}

const told = (error: EventBody): string =>
  [error['message'], error['expected'], error['found'], error['hint']].filter(Boolean).join(' | ');

for (const { what, files, code, exit, file, line, offset, entry: name, says } of CASES)
  test(`${what}: ${code}`, async () => {
    const all = { ...GOOD, ...files };
    const cwd = folder(all);
    const { error, found, display } = THROUGH_CLI.has(what) ? await byCommand(cwd) : await byStages(cwd);
    assert.ok(error, `no error; exit ${found}`);
    assert.is(error['code'], code, told(error));
    assert.is(found, exit);
    if (file !== '') assert.ok(String(error['file']).endsWith(file), `place ${String(error['file'])}`);
    if (line !== undefined) assert.is(error['line'], line, told(error));
    if (offset !== undefined) assert.is(error['offset'], offset);
    if (name !== undefined) assert.match(String(error['entry']), name);
    if (says !== undefined) assert.match(told(error), says);
    assert.ok(error['hint'] || error['expected'], `neither hint nor expectation: ${told(error)}`);
    if (display !== null) assert.match(display, new RegExp(`error\\[${code}\\]`));
    // Nothing but what was there, and in the run directory no model, no checkpoint, nothing half-made.
    const made = readdirSync(cwd).filter(
      (entry) => !Object.keys(all).some((path) => path.split('/')[0] === entry),
    );
    assert.ok(made.length === 0 || made.join() === 'run', made.join());
    assert.equal(leftovers(cwd), []);
    const inRun = made.length === 0 ? [] : readdirSync(join(cwd, 'run'));
    assert.ok(!inRun.some((entry) => /\.dat|checkpoints/.test(entry)), inRun.join());
    if (display !== null && exit !== 3) assert.is(readReport(join(cwd, 'run')).exit_code, exit);
  });

test('every mistake of a file is told at once', async () => {
  const text = PIPELINE.replace('steps: 2', 'steps: two').replace('batch_size', 'bath_size').replace('uses: build-model', 'uses: bild-model'); // prettier-ignore
  const cwd = folder({ ...GOOD, 'p.yaml': text });
  const outcome = await q4run(cwd, 'p.yaml', '--run-dir', 'run');
  assert.is(outcome.code, 3);
  assert.equal(errorsIn(outcome).map(({ code }) => code).sort(), ['Q4103', 'Q4104', 'Q4106']); // prettier-ignore
  assert.equal(readdirSync(cwd).includes('run'), false);
});

test('several wrong weights are told at once', async () => {
  const cwd = folder({ ...GOOD, ...config({ intermediate_size: 64, num_hidden_layers: 4 }) });
  const outcome = await q4run(cwd, 'p.yaml', '--run-dir', 'run');
  const codes = errorsIn(outcome).map(({ code }) => code);
  assert.ok(codes.includes('Q4281') && codes.filter((code) => code === 'Q4283').length > 3, codes.join());
});

test('the unbroken case runs, and an export that cannot be written leaves nothing', async () => {
  const cwd = folder({ ...GOOD, 'p.yaml': PIPELINE.replace('trained.dat', 'file/trained.dat') });
  const run = join(cwd, 'run');
  const first = await q4run(cwd, 'p.yaml', '--run-dir', 'run', '--until', 'train');
  assert.is(first.code, 0, first.err);
  writeFileSync(join(run, 'file'), 'in the way');
  const second = await q4run(cwd, 'p.yaml', '--run-dir', 'run');
  assert.is(second.code, 4, second.err);
  assert.is(errorsIn(second)[0]!['code'], 'Q4413');
  assert.is(readFileSync(join(run, 'file'), 'utf8'), 'in the way');
  assert.equal(leftovers(run), []);
});

test.run();
