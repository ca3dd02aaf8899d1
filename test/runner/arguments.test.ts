import { test } from 'uvu';
import * as assert from 'uvu/assert';

import { parseArguments } from '../../runtime/runner/arguments.js';
import { thrownBy } from './fixture.js';

const told = (...argv: string[]) => {
  const [error] = thrownBy(() => parseArguments(argv));
  return `${error!.code} ${error!.message}: ${error!.details.hint ?? ''}`;
};

test('a file alone is run; flags stand anywhere', () => {
  const line = parseArguments([
    '--json',
    'a/b.yaml',
    '--set',
    'a.b=c',
    '--set=d.e=f=g',
    '-q',
    '--until',
    'x',
  ]);
  assert.is(line.command, 'run');
  assert.equal(line.positionals, ['a/b.yaml']);
  assert.equal(line.flags.set, ['a.b=c', 'd.e=f=g']);
  assert.ok(line.flags.json && line.flags.quiet);
  assert.is(line.flags.until, 'x');
});

test('commands take their arguments', () => {
  assert.is(parseArguments(['check', 'p.yaml']).command, 'check');
  assert.equal(parseArguments(['why', 'p.yaml', 'train']).positionals, ['p.yaml', 'train']);
  assert.is(parseArguments([]).command, 'help');
  assert.is(parseArguments(['-h']).command, 'help');
  assert.is(parseArguments(['--version']).command, 'version');
  assert.equal(parseArguments(['run', '--', '--odd.yaml']).positionals, ['--odd.yaml']);
});

test('mistakes are told with what was meant', () => {
  assert.is(told('chekc', 'p.yaml'), `Q4001 unknown command 'chekc': did you mean 'check'?`);
  assert.is(told('p.yaml', '--fersh'), `Q4001 unknown flag '--fersh': did you mean '--fresh'?`);
  assert.match(told('p.yaml', '--run-dir'), /^Q4002 --run-dir needs a value/);
  assert.match(told('p.yaml', '--set', '--json'), /^Q4002 --set needs a value/);
  assert.match(told('p.yaml', '--fresh=1'), /^Q4002 --fresh takes no value/);
  assert.match(told('check'), /^Q4002 check needs FILE.yaml/);
  assert.match(told('check', 'a.yaml', 'b.yaml'), /^Q4002 'b.yaml' is one argument too many/);
  assert.match(told('p.yaml', '--only', 'a', '--until', 'b'), /^Q4002 --only cannot stand beside/);
  assert.match(told('preview', 'p.yaml', '--samples', '0'), /^Q4002 --samples takes a whole number/);
});

test.run();
