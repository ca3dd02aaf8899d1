/** A fault of the device is told, also where it happened in a step that nobody waited for. */
import { test } from 'uvu';
import * as assert from 'uvu/assert';

import { openEngine } from '../../runtime/engine/engine.js';
import { Q4Error } from '../../runtime/errors.js';
import { inStore, program } from '../engine/programs.js';

/** Rows further than any memory that this process has. */
const FAR = 2 ** 29;

test('a step that runs ahead reads where nothing is', async () => {
  const engine = openEngine({ device: 'cuda' });
  const store = engine.createStore();
  store.allocate('table', 'f32', [4, 2]);
  store.allocate('ids', 'i32', [1]);
  store.allocate('y', 'f32', [1, 2]);
  const tensors = [inStore('table', 'f32', [4, 2]), inStore('ids', 'i32', [1]), inStore('y', 'f32', [1, 2])];
  const run = engine.load(
    program(tensors, [
      { op: 'embedding', inputs: [0, 1], outputs: [2] },
      { op: 'increment', inputs: [], outputs: [1], attrs: { by: FAR, max: FAR } },
    ]),
    store,
  );
  try {
    // The first step reads row 0 and is the last that counts; the next, under way already, reads row FAR.
    await run.decode({ tokens: 'ids', maxTokens: 10, stopTokens: [FAR] });
    assert.unreachable('the fault was not told');
  } catch (thrown) {
    assert.instance(thrown, Q4Error);
    assert.is((thrown as Q4Error).code, 'Q4701');
  }
  // Nothing works on the device now, but closing it is no crash.
  run.dispose();
  store.dispose();
  engine.dispose();
});

test.run();
