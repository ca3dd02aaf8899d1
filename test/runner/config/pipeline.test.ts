import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'uvu';
import * as assert from 'uvu/assert';

import { loadPipeline, type LoadOptions } from '../../../runtime/runner/config/pipeline.js';
import { readSchema } from '../../../runtime/runner/config/schemas.js';
import { nodeAt } from '../../../runtime/runner/config/tree.js';
import { EXAMPLE, EXAMPLE_FILES, folder, thrownBy } from '../fixture.js';

const home = folder(EXAMPLE_FILES);

const load = (text: string, options: LoadOptions = {}) => {
  writeFileSync(join(home, 'case.yaml'), text);
  return loadPipeline('case.yaml', { cwd: home, env: {}, ...options });
};
/** `line:col code message: hint` of each error. */
const errors = (text: string, options: LoadOptions = {}) =>
  thrownBy(() => load(text, options)).map(
    ({ code, message, details }) =>
      `${details.line ?? details.file ?? ''}:${details.col ?? ''} ${code} ${message}: ${details.hint ?? ''}`,
  );

const stage = (name: string, pipeline = load(EXAMPLE)) => pipeline.stages.find(({ id }) => id === name)!;

test('a right file is complete: defaults, absolute inputs, order', () => {
  const pipeline = load(EXAMPLE);
  assert.is(pipeline.name, 'example');
  assert.is(pipeline.runtime.device, 'auto');
  assert.equal(
    pipeline.stages.map(({ id }) => id),
    ['weights', 'model', 'train', 'save', 'gate', 'ask'],
  );
  assert.is(stage('weights', pipeline).with['weights'], join(home, 'assets/model.dat'));
  assert.is(stage('save', pipeline).with['export'], 'trained.dat');
  const train = stage('train', pipeline).with as Record<string, Record<string, unknown>>;
  assert.is(train['schedule']!['min_ratio'], 0);
  assert.equal(train['optimizer']!['betas'], [0.9, 0.95]);
  assert.is(train['data']!['path'], join(home, 'assets/data.jsonl'));
});

test('a file without name is called as the file', () => {
  assert.is(load(EXAMPLE.replace('name: example\n', '')).name, 'case');
});

test('stages run in the order of their needs, else as written', () => {
  const text =
    EXAMPLE.replace(/ {2}- id: weights[\s\S]*?(?= {2}- id: model)/, '') +
    EXAMPLE.match(/ {2}- id: weights[\s\S]*?(?= {2}- id: model)/)![0];
  assert.equal(
    load(text).stages.map(({ id }) => id),
    ['weights', 'model', 'train', 'save', 'gate', 'ask'],
  );
});

test('origins: file, default, --set, environment', () => {
  const { tree } = load(EXAMPLE, { sets: ['train.steps=3'], env: { Q4RUN_SET_TRAIN__SEQ_LEN: '64' } });
  const origin = (...path: string[]) => nodeAt(tree, ['stages', 2, 'with', ...path])!.origin;
  assert.is(origin('steps').kind, 'set');
  assert.is(origin('seq_len').kind, 'env');
  assert.is(origin('pack').kind, 'default');
  assert.equal(origin('batch_size'), { kind: 'file', file: join(home, 'case.yaml'), line: 18, col: 19 });
});

const USES = (
  readSchema('pipeline') as unknown as {
    properties: { stages: { items: { properties: { uses: { enum: string[] } } } } };
  }
).properties.stages.items.properties.uses.enum;

/** What is replaced by what, and the errors that must come, all of them. */
const MISTAKES: readonly [from: string, to: string, ...expected: string[]][] = [
  [
    'learning_rate',
    'lerning_rate',
    `19:7 Q4103 unknown key 'lerning_rate' in stage 'train': did you mean 'learning_rate'?`,
  ],
  [
    'batch_size: 8',
    'gradient_accumulation_steps: 8',
    `18:7 Q4103 unknown key 'gradient_accumulation_steps' in stage 'train': here it is called 'accumulate'`,
  ],
  ['name: example', 'nmae: example', `2:1 Q4103 unknown key 'nmae' in the pipeline: did you mean 'name'?`],
  [
    'batch_size: 8',
    'batch_size: "8"',
    `18:19 Q4104 'batch_size' of stage 'train' must be a whole number, found the text "8": remove the quotes`,
  ],
  [
    'batch_size: 8',
    'batch_size: 1_000',
    `18:19 Q4104 'batch_size' of stage 'train' must be a whole number, found the text "1_000": YAML 1.2 reads this as text; write 1000`,
  ],
  [
    'batch_size: 8',
    'shuffle: yes',
    `18:16 Q4104 'shuffle' of stage 'train' must be true or false, found the text "yes": YAML 1.2 reads this as text; write true`,
  ],
  [
    'batch_size: 8',
    'batch_size:',
    `18:18 Q4104 'batch_size' of stage 'train' must be a whole number, found nothing: `,
  ],
  [
    'batch_size: 8',
    'batch_size: 0',
    `18:19 Q4105 'batch_size' of stage 'train' must be at least 1, found 0: `,
  ],
  [
    'learning_rate: 1.0e-3',
    'learning_rate: .nan',
    `19:22 Q4104 'learning_rate' of stage 'train' must be a number, found NaN: `,
  ],
  [
    'kind: cosine',
    'kind: cosin',
    `20:25 Q4106 'schedule.kind' of stage 'train' is "cosin", which is not one of constant, linear, cosine, wsd: did you mean 'cosine'?`,
  ],
  [
    'uses: train\n',
    'uses: trian\n',
    `13:11 Q4106 'uses' of stage 'train' is "trian", which is not one of ${USES.join(', ')}: did you mean 'train'?`,
  ],
  [
    'steps: 12',
    'steps: 12\n      epochs: 2',
    `18:7 Q4108 'steps' and 'epochs' of stage 'train' exclude each other: keep one of them`,
  ],
  [
    '      steps: 12\n',
    '',
    `16:7 Q4108 stage 'train' needs 'steps' or 'epochs': give exactly one of steps or epochs`,
  ],
  [
    '      data: { path: assets/data.jsonl }\n',
    '',
    `16:7 Q4107 stage 'train' lacks the key 'data': data: What to train on: one source, or a list of sources that are mixed.`,
  ],
  [
    'version: 1',
    'version: 2',
    `1:10 Q4115 version 2 of the pipeline format is not supported: this q4run reads version: 1`,
  ],
  [
    'path: assets/data.jsonl',
    'path: ${vars.model}/x',
    `16:22 Q4101 Unexpected flow-map-start at node end: inside { } and [ ], put a value with \${…} in quotes`,
  ],
  [
    'id: model',
    'id: weights',
    `9:9 Q4112 two stages have the id 'weights': the first stands in line 6; give this one another id`,
    `14:13 Q4113 stage 'train' needs 'model', which is not in the pipeline: the stages are weights, train, save, gate, ask`,
  ],
  [
    'needs: [save]',
    'needs: [svae]',
    `23:45 Q4113 stage 'gate' needs 'svae', which is not in the pipeline: did you mean 'save'?`,
  ],
  ['needs: [weights]', 'needs: [model]', `11:13 Q4113 stage 'model' needs itself: `],
  [
    'needs: [weights]',
    'needs: [train]',
    `11:12 Q4113 these stages need each other in a circle: model, train: `,
  ],
  [
    'needs: [weights]',
    'with: {}',
    `9:9 Q4114 stage 'model' takes weights, but nothing that it needs gives one: add 'weights' to its needs`,
  ],
  [
    '    needs: [weights]',
    '    needs: [weights]\n    with: { compute: w4a8 }',
    `12:22 Q4116 'compute' of stage 'model': "w4a8" is not in this version of q4run: use w4a16`,
  ],
  [
    '${vars.model}/config.json',
    '${vars.modle}/config.json',
    `8:57 Q4110 there is no variable 'modle': did you mean 'model'?`,
  ],
  [
    'assets/data.jsonl',
    '"${env.NOWHERE}"',
    `16:21 Q4110 the environment variable NOWHERE is not set: set it, or give a default: \${env.NOWHERE:-value}`,
  ],
  [
    '  model: assets',
    '  model: "${vars.model}"',
    `4:10 Q4110 the variable 'model' refers to itself: model → model: `,
  ],
  [
    'trained.dat',
    'trained.bin',
    `22:67 Q4105 'export' of stage 'save' has the wrong form, found "trained.bin": the name ends in .dat`,
  ],
  [
    'prompts: ["Who are you?"]',
    'prompts: ["${stages.gate.outputs.passed}", "${stages.nobody.outputs.x}"]',
    `24:95 Q4110 \${stages.nobody.outputs.x}: there is no stage 'nobody': the stages are weights, model, train, save, gate, ask`,
  ],
  ['steps: 12', 'steps: 12\n      x-note: free', ''],
];
for (const [from, to, ...expected] of MISTAKES) {
  test(`told: ${to.trim().replaceAll('\n', ' ')}`, () => {
    const text = EXAMPLE.replace(from, to);
    assert.is.not(text, EXAMPLE);
    if (expected[0] === '') assert.ok(load(text));
    else {
      const found = errors(text);
      for (const [i, line] of expected.entries()) assert.is(found[i], line);
      assert.is(found.length, expected.length, found.join('\n'));
    }
  });
}

test('all mistakes of a file at once, in its order', () => {
  const text = EXAMPLE.replace('batch_size: 8', 'batch_size: 0')
    .replace('lear', 'ler')
    .replace('nee', 'ned')
    .replace('vars:', 'vras:');
  const found = errors(text);
  assert.ok(found.length >= 4, found.join('\n'));
  const lines = found.map((line) => Number(line.split(':')[0]));
  assert.equal(
    lines,
    [...lines].sort((a, b) => a - b),
  );
});

test('--set and environment: typed by the schema, in order of precedence', () => {
  const sets = [
    'train.steps=3',
    'stages.train.with.shuffle=false',
    'train.optimizer.betas=[0.8, 0.99]',
    'train.optimizer.betas.1=0.9',
    'runtime.seed=7',
    'vars.model=elsewhere',
    'ask.prompts.0=2',
    'ask.prompts.1=three',
    'train.data={path: other.jsonl, format: text}',
  ];
  const pipeline = load(EXAMPLE, {
    sets,
    env: { Q4RUN_SET_TRAIN__STEPS: '99', Q4RUN_SET_TRAIN__SEQ_LEN: '32' },
  });
  const train = stage('train', pipeline).with as Record<string, unknown>;
  assert.is(train['steps'], 3);
  assert.is(train['seq_len'], 32);
  assert.is(train['shuffle'], false);
  assert.equal((train['optimizer'] as { betas: number[] }).betas, [0.8, 0.9]);
  assert.equal((train['data'] as { path: string }).path, join(home, 'other.jsonl'));
  assert.is(pipeline.runtime.seed, 7);
  assert.is(stage('weights', pipeline).with['weights'], join(home, 'elsewhere/model.dat'));
  assert.equal(stage('ask', pipeline).with['prompts'], ['2', 'three']);
});

test('--set that is wrong says so itself', () => {
  assert.equal(errors(EXAMPLE, { sets: ['trian.steps=3'] }), [
    `--set trian.steps: Q4103 there is no stage or key 'trian': did you mean 'train'?`,
  ]);
  assert.equal(errors(EXAMPLE, { sets: ['train.steps=many'] }), [
    `--set train.steps=many: Q4104 'steps' of stage 'train' must be a whole number, found the text "many": `,
  ]);
  assert.match(errors(EXAMPLE, { sets: ['ask.prompts.5=x'] })[0]!, /Q4105 a list of 1 has no place 5/);
  assert.match(errors(EXAMPLE, { sets: ['steps'] })[0]!, /Q4002/);
});

test('--set of a path is relative to where the command is given', () => {
  mkdirSync(join(home, 'sub'), { recursive: true });
  const pipeline = loadPipeline('../p.yaml', {
    cwd: join(home, 'sub'),
    env: {},
    sets: ['weights.weights=w.dat'],
  });
  assert.is(stage('weights', pipeline).with['weights'], join(home, 'sub/w.dat'));
  assert.is(stage('weights', pipeline).with['config'], join(home, 'assets/config.json'));
});

test('references: env, defaults, whole values keep their type, $${ is literal', () => {
  const text = EXAMPLE.replace('steps: 12', 'steps: "${vars.steps}"')
    .replace('vars:', 'vars:\n  steps: 5')
    .replace('batch_size: 8', 'batch_size: ${env.BATCH:-4}')
    .replace('Who are you?', '$${vars.model} ${env.WHO} ${stages.gate.outputs.passed}');
  const pipeline = load(text, { env: { WHO: 'Q' } });
  assert.is(stage('train', pipeline).with['steps'], 5);
  assert.is(stage('train', pipeline).with['batch_size'], 4);
  assert.is(stage('ask', pipeline).late.length, 1);
  assert.is(load(text, { env: { WHO: 'Q', BATCH: '16' } }).stages[2]!.with['batch_size'], 16);
});

test('extends: maps merge, stages merge by id, lists are replaced, paths stay with their file', () => {
  const place = folder({
    'base/p.yaml': EXAMPLE,
    'p.yaml': `version: 1\nextends: base/p.yaml\nname: child\nstages:\n  - { id: train, uses: train, with: { steps: 99, schedule: { warmup_steps: 7 } } }\n  - { id: again, uses: infer, needs: [ask, train], with: { prompts: [a] } }\n`,
  });
  const pipeline = loadPipeline('p.yaml', { cwd: place, env: {} });
  assert.is(pipeline.name, 'child');
  const train = pipeline.stages.find(({ id }) => id === 'train')!.with as Record<string, unknown>;
  assert.is(train['steps'], 99);
  assert.is(train['batch_size'], 8);
  assert.equal(train['schedule'], { kind: 'cosine', warmup_steps: 7, min_ratio: 0 });
  assert.is((train['data'] as { path: string }).path, join(place, 'base/assets/data.jsonl'));
  assert.is(pipeline.stages.at(-1)!.id, 'again');
  assert.is(pipeline.files.length, 2);
});

test('include adds; a conflict, a circle and a missing file are located', () => {
  const place = folder({
    'ok.yaml': `version: 1\ninclude: [stages.yaml]\nvars: { model: assets }\n`,
    'stages.yaml': EXAMPLE,
    'conflict.yaml': `version: 1\ninclude: stages.yaml\nvars: { model: other }\n`,
    'a.yaml': 'version: 1\nextends: b.yaml\n',
    'b.yaml': 'version: 1\ninclude: a.yaml\n',
    'missing.yaml': 'version: 1\nextends: nowhere.yaml\n',
  });
  const load = (name: string) => loadPipeline(name, { cwd: place, env: {} });
  assert.is(load('ok.yaml').stages.length, 6);
  const places = (name: string) =>
    thrownBy(() => load(name))
      .filter(({ code }) => code === 'Q4111')
      .map(
        ({ message, details }) =>
          `${details.file?.split('/').pop()}:${details.line} ${message.replaceAll(place, '')}`,
      );
  assert.equal(places('conflict.yaml'), [
    `conflict.yaml:3 'vars.model' is defined differently in /stages.yaml:4`,
  ]);
  assert.equal(places('a.yaml'), ['b.yaml:2 this file comes back to itself: a.yaml → b.yaml → a.yaml']);
  assert.match(places('missing.yaml')[0]!, /^missing.yaml:2 cannot read \/nowhere.yaml/);
});

test('a file that is not there, not text, too big or no map', () => {
  const place = folder({ 'list.yaml': '- a\n', 'latin.yaml': '' });
  writeFileSync(join(place, 'latin.yaml'), Buffer.from([0x61, 0x3a, 0x20, 0xff, 0xfe]));
  writeFileSync(join(place, 'big.yaml'), `#${' '.repeat(5_000_000)}`);
  const code = (name: string) => thrownBy(() => loadPipeline(name, { cwd: place, env: {} }))[0]!.code;
  assert.is(code('none.yaml'), 'Q4003');
  assert.is(code('list.yaml'), 'Q4104');
  assert.is(code('latin.yaml'), 'Q4101');
  assert.is(code('big.yaml'), 'Q4101');
});

test('the hash: what matters to the result changes it, the display does not', () => {
  const hash = (text: string, sets: string[] = []) => load(text, { sets }).hash;
  const own = hash(EXAMPLE);
  for (const set of ['train.steps=13', 'runtime.seed=1', 'ask.temperature=0', 'vars.model=other']) {
    assert.is.not(hash(EXAMPLE, [set]), own, set);
  }
  for (const set of [
    'train.log_every=5',
    'runtime.threads=1',
    'runtime.device=cpu',
    'ask.stream=false',
    'name=x',
  ]) {
    assert.is(hash(EXAMPLE, [set]), own, set);
  }
  assert.is(hash(EXAMPLE.replace('batch_size: 8', 'batch_size: 8 # same\n      x-note: free')), own);
});

test.run();
