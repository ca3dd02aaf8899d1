/** Stores, arenas, programs and engines as JavaScript holds them: disposal, misuse, one program at a time. */
import { test } from 'uvu';
import * as assert from 'uvu/assert';

import { openEngine, type Engine, type Store } from '../../runtime/engine/engine.js';
import { Q4Error, type ErrorCode } from '../../runtime/errors.js';
import { counter, inArena, inStore, program, slow, whileRunning } from './programs.js';

const engine = openEngine({ device: 'cpu', threads: 1 });

const codeOf = (thrown: unknown): ErrorCode => {
  assert.instance(thrown, Q4Error, String(thrown));
  return (thrown as Q4Error).code;
};
function throws(action: () => unknown, code: ErrorCode, what: string): void {
  try {
    action();
  } catch (thrown) {
    return assert.is(codeOf(thrown), code, `${what}: ${(thrown as Error).message}`);
  }
  assert.unreachable(`${what} was allowed`);
}
async function rejects(promise: Promise<unknown>, code: ErrorCode, what: string): Promise<void> {
  await promise.then(
    () => assert.unreachable(`${what} was allowed`),
    (thrown: unknown) => assert.is(codeOf(thrown), code, `${what}: ${(thrown as Error).message}`),
  );
}

function withStore(body: (store: Store) => Promise<void>, on: Engine = engine): () => Promise<void> {
  return async () => {
    const store = on.createStore();
    try {
      await body(store);
    } finally {
      store.dispose();
    }
  };
}

test(
  'tensors are zeroed, read as written, renamed and freed, and memory is counted',
  withStore(async (store) => {
    const before = engine.memory.allocatedBytes;
    store.allocate('a', 'f32', [2, 3]);
    store.allocate('w', 'nvfp4', [2, 32]);
    assert.equal([...store.read('a')], [0, 0, 0, 0, 0, 0]);
    store.write('a', Float32Array.of(1, 2, 3, 4, 5, 6));
    store.rename('a', 'b');
    assert.equal([...store.read('b')], [1, 2, 3, 4, 5, 6]);
    assert.equal(
      store.list().map(({ name, dtype, shape, bytes }) => [name, dtype, [...shape], bytes]),
      [
        ['b', 'f32', [2, 3], 256],
        ['w', 'nvfp4', [2, 32], 768],
      ],
    );
    assert.is(store.bytes, 1024);
    assert.is(engine.memory.allocatedBytes - before, 1024);
    assert.is(store.read('w', 'qdata').length, 32);
    assert.is(store.read('w', 'scale').length, 4);
    store.write('w', Float32Array.of(0.5), 'global_scale');
    assert.equal([...store.read('w', 'global_scale')], [0.5]);
    store.free('b');
    assert.is(store.has('b'), false);
    assert.is(engine.memory.allocatedBytes - before, 768);
  }),
);

test(
  'misuse of a store is an error with a code',
  withStore(async (store) => {
    store.allocate('a', 'f32', [2]);
    store.allocate('w', 'nvfp4', [1, 16]);
    throws(() => store.allocate('a', 'f32', [2]), 'Q4511', 'a name twice');
    throws(() => store.allocate('b', 'f32', [0]), 'Q4510', 'a dimension of 0');
    throws(() => store.allocate('b', 'f32', [-1]), 'Q4510', 'a negative dimension');
    throws(() => store.allocate('b', 'f32', [1.5]), 'Q4514', 'half a row');
    throws(() => store.allocate('b', 'f32', [2 ** 30, 2 ** 30]), 'Q4510', 'an overflow');
    throws(() => store.allocate('b', 'f32', [1, 1, 1, 1, 1]), 'Q4510', 'five dimensions');
    throws(() => store.allocate('b', 'nvfp4', [1, 8]), 'Q4510', 'half a block');
    throws(() => store.allocate('b', 'f64' as never, [1]), 'Q4510', 'an unknown dtype');
    throws(() => store.allocate('b', 'f32', [2 ** 46]), 'Q4401', 'more than there is');
    throws(() => store.read('x'), 'Q4511', 'a tensor that is not there');
    throws(() => store.read('a', 'qdata'), 'Q4511', 'a part of a plain tensor');
    throws(() => store.read('w'), 'Q4511', 'an nvfp4 tensor as a whole');
    throws(() => store.write('a', Float32Array.of(1)), 'Q4511', 'too little');
    throws(() => store.write('a', Int32Array.of(1, 2)), 'Q4511', 'another type');
    throws(() => store.write('a', [1, 2] as never), 'Q4514', 'no typed array');
    throws(() => store.rename('a', 'w'), 'Q4511', 'a name that is taken');
    throws(() => store.rename('x', 'y'), 'Q4511', 'a rename of nothing');
    throws(() => store.free('x'), 'Q4511', 'freeing nothing');
    assert.equal(
      store.list().map(({ name }) => name),
      ['a', 'w'],
    );
  }),
);

test('everything may be disposed twice, and using it afterwards is Q4514', async () => {
  const own = openEngine({ device: 'cpu', threads: 1 });
  const store = own.createStore();
  store.allocate('ids', 'i32', [1]);
  const arena = own.createArena(4096);
  const run = own.load(counter(1), store, arena);
  await run.run();
  for (const handle of [run, arena, store, own, run, arena, store, own]) handle.dispose();
  await rejects(run.run(), 'Q4514', 'a run');
  await rejects(run.decode({ tokens: 'ids', maxTokens: 1, stopTokens: [] }), 'Q4514', 'a decode');
  throws(() => store.read('ids'), 'Q4514', 'a read');
  throws(() => store.allocate('b', 'f32', [1]), 'Q4514', 'an allocation');
  throws(() => store.list(), 'Q4514', 'a list');
  throws(() => store.bytes, 'Q4514', 'a size');
  throws(() => own.createStore(), 'Q4514', 'a new store');
  throws(() => own.createArena(1), 'Q4514', 'a new arena');
  throws(() => own.memory, 'Q4514', 'memory');
  throws(() => own.device, 'Q4514', 'the device');
  throws(() => own.load(counter(1), store), 'Q4514', 'a program');
});

test('what a program uses stays until the program goes, whatever was disposed before it', async () => {
  const own = openEngine({ device: 'cpu', threads: 1 });
  const probe = own.createStore();
  const store = own.createStore();
  store.allocate('x', 'f32', [64, 64]);
  store.allocate('w', 'f32', [64, 64]);
  store.allocate('y', 'f32', [64, 64]);
  const run = own.load(slow(64, 3), store);
  const held = own.memory.allocatedBytes;
  store.free('y');
  store.dispose();
  await run.run();
  assert.ok(own.memory.allocatedBytes >= 3 * 64 * 64 * 4 && own.memory.allocatedBytes <= held);
  run.dispose();
  assert.is(own.memory.allocatedBytes, 0);
  probe.dispose();
  own.dispose();
});

test('disposing everything while a program runs lets it end', async () => {
  const own = openEngine({ device: 'cpu', threads: 2 });
  const store = own.createStore();
  for (const name of ['x', 'w', 'y']) store.allocate(name, 'f32', [128, 128]);
  const run = own.load(slow(128, 200), store);
  const running = run.run();
  run.dispose();
  store.dispose();
  own.dispose();
  assert.ok((await running).seconds > 0);
});

test(
  'a run has the device from the call on, until it ends',
  withStore(async (store) => {
    for (const name of ['x', 'w', 'y']) store.allocate(name, 'f32', [256, 256]);
    // Minutes, if nobody stopped it: nothing here depends on which thread comes first.
    const run = engine.load(slow(256, 30_000), store);
    const stop = new AbortController();
    const running = run.run({ signal: stop.signal });
    throws(() => store.read('y'), 'Q4513', 'a read');
    await rejects(run.run(), 'Q4513', 'the same program');
    stop.abort();
    await rejects(running, 'Q4501', 'the run that was stopped');
    assert.is(store.read('y').length, 256 * 256);
    run.dispose();
  }),
);

test(
  'while a program runs the device is busy, and free again afterwards',
  withStore(async (store) => {
    for (const name of ['x', 'w', 'y']) store.allocate(name, 'f32', [64, 64]);
    const other = engine.load(slow(64, 1), store);
    const refused: Promise<void>[] = [];
    await whileRunning(engine, store, () => {
      throws(() => store.read('y'), 'Q4513', 'a read');
      throws(() => store.write('x', new Float32Array(64 * 64)), 'Q4513', 'a write');
      throws(() => store.allocate('z', 'f32', [1]), 'Q4513', 'an allocation');
      throws(() => store.free('y'), 'Q4513', 'freeing');
      throws(() => store.rename('y', 'z'), 'Q4513', 'a rename');
      throws(() => engine.load(counter(1), store), 'Q4513', 'loading a program');
      refused.push(rejects(other.run(), 'Q4513', 'another program'));
      const decoded = other.decode({ tokens: 'ids', maxTokens: 1, stopTokens: [] });
      refused.push(rejects(decoded, 'Q4513', 'a decode'));
      assert.is(store.has('y'), true);
      assert.is(store.info('y').dtype, 'f32');
    });
    assert.is(refused.length, 2);
    await Promise.all(refused);
    await other.run();
    assert.equal([...store.read('ids')], [100]);
    other.dispose();
  }),
);

test(
  'two engines run at the same time',
  withStore(async (store) => {
    const own = openEngine({ device: 'cpu', threads: 1 });
    const second = own.createStore();
    for (const where of [store, second])
      for (const name of ['x', 'w', 'y']) where.allocate(name, 'f32', [128, 128]);
    const [a, b] = [engine.load(slow(128, 100), store), own.load(slow(128, 100), second)];
    const both = await Promise.all([a.run(), b.run()]);
    assert.is(both.length, 2);
    for (const handle of [a, b, second, own]) handle.dispose();
  }),
);

test(
  'cancelling ends a run between ops with Q4501, before it or within it',
  withStore(async (store) => {
    for (const name of ['x', 'w', 'y']) store.allocate(name, 'f32', [256, 256]);
    const run = engine.load(slow(256, 30_000), store);
    await rejects(run.run({ signal: AbortSignal.abort() }), 'Q4501', 'a run that was cancelled before');
    const stop = new AbortController();
    const running = run.run({ signal: stop.signal });
    setTimeout(() => stop.abort(), 20);
    const started = performance.now();
    await rejects(running, 'Q4501', 'a run that was cancelled within');
    assert.ok(performance.now() - started < 5000);
    // The signal is let go of: aborting later concerns nobody.
    const calm = new AbortController();
    const short = engine.load(slow(256, 1), store);
    await short.run({ signal: calm.signal });
    calm.abort();
    await short.run();
    run.dispose();
    short.dispose();
  }),
);

test(
  'a profile times every op',
  withStore(async (store) => {
    for (const name of ['x', 'w', 'y']) store.allocate(name, 'f32', [128, 128]);
    const run = engine.load(slow(128, 5), store);
    const { ops, seconds } = await run.run({ profile: true });
    assert.is(ops!.length, 5);
    assert.ok(ops!.every((op) => op.op === 'linear' && op.seconds > 0 && op.scope === 'test'));
    const sum = ops!.reduce((total, op) => total + op.seconds, 0);
    assert.ok(sum <= seconds, `${sum} of ${seconds}`);
    assert.is((await run.run()).ops, undefined);
    run.dispose();
  }),
);

test(
  'arenas: shared, too small, of another engine',
  withStore(async (store) => {
    store.allocate('out', 'f32', [64]);
    const fills = (value: number) =>
      program(
        [inArena('t', 256, [64]), inStore('out', 'f32', [64])],
        [
          { op: 'fill', inputs: [], outputs: [0], attrs: { value } },
          { op: 'add', inputs: [0, 0], outputs: [1] },
        ],
        512,
      );
    const arena = engine.createArena(512);
    const [a, b] = [engine.load(fills(1), store, arena), engine.load(fills(2), store, arena)];
    await a.run();
    await b.run();
    assert.is(store.read('out')[63], 4);
    await a.run();
    assert.is(store.read('out')[0], 2);
    const small = engine.createArena(256);
    throws(() => engine.load(fills(1), store, small), 'Q4510', 'an arena that is too small');
    throws(() => engine.createArena(-1), 'Q4510', 'a negative arena');
    const own = openEngine({ device: 'cpu', threads: 1 });
    const foreign = own.createArena(512);
    throws(() => engine.load(fills(1), store, foreign), 'Q4510', 'the arena of another engine');
    for (const handle of [a, b, arena, small, foreign, own]) handle.dispose();
    throws(() => engine.load(fills(1), store, arena), 'Q4514', 'an arena that was disposed');
  }),
);

test('handles that nobody keeps give their memory back', async () => {
  const own = openEngine({ device: 'cpu', threads: 1 });
  // Needs the collector; without it the engine's end would do the same.
  for (let i = 0; i < 50; i++) {
    const store = own.createStore();
    store.allocate('x', 'f32', [1024]);
    store.dispose();
  }
  assert.is(own.memory.allocatedBytes, 0);
  assert.is(own.memory.peakBytes, 4096);
  own.dispose();
});

test.after(() => engine.dispose());
test.run();
