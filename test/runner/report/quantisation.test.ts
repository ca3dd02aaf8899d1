/** The quantisation section: a cell a matrix, a row a family, nothing for other stages, nothing unescaped. */
import { test } from 'uvu';
import * as assert from 'uvu/assert';

import type { StageState } from '../../../runtime/runner/events/run-state.js';
import { quantisationSection } from '../../../runtime/runner/report/quantisation.js';

const row = (name: string, error: number): object => ({
  ...{ name, elements: 4096, sqnr_db: -20 * Math.log10(error), relative_error: error },
  ...{ zero_code_share: 0.1, saturated: 3, floor_blocks: 0, global_scale: 1e-4 },
});

const stage = (outputs: object): StageState => ({ id: 'im<port', outputs }) as unknown as StageState;

test('draws every matrix and lists every family', () => {
  const tensors = [0, 1, 2].flatMap((layer) =>
    ['q_proj', 'o_proj'].map((part) =>
      row(`model.layers.${layer}.self_attn.${part}.weight`, 0.09 + layer / 100),
    ),
  );
  const families = [row('self_attn.q_proj', 0.1), row('self_attn.o_proj', 0.1), row('<b>', 0.1)];
  const html = quantisationSection(stage({ scales: 'mse', quantisation: { tensors, families } }));
  assert.is(html.match(/<rect /g)?.length, 6);
  assert.is(html.match(/<tr>/g)?.length, 4);
  assert.match(html, '20.00 dB');
  assert.match(html, 'scales: mse');
  assert.match(html, '&lt;b&gt;');
  assert.not.match(html, 'im<port');
});

test('is empty where nothing was quantised', () => {
  assert.is(quantisationSection(stage({})), '');
  assert.is(quantisationSection(stage({ quantisation: { tensors: [], families: [] } })), '');
  assert.is(quantisationSection(stage({ quantisation: null })), '');
});

test.run();
