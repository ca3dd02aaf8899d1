import { test } from 'uvu';
import * as assert from 'uvu/assert';
import { loadModelText, type TextFiles } from '../../runtime/text/model-text.js';
import { caughtAll, TOKENIZER_CONFIG, TOKENIZER_JSON } from './shipped.js';

const filesOf = (files: Record<string, string>): TextFiles => ({
  exists: (path) => Promise.resolve(path in files),
  readText: (path) => Promise.resolve(files[path]!),
  join: (...parts) => parts.join('/').replace('/./', '/').replace('//', '/'),
});

const BASE = { '/m/tokenizer.json': TOKENIZER_JSON, '/m/tokenizer_config.json': TOKENIZER_CONFIG };

test('reads a directory, or a tokenizer.json and what stands beside it', async () => {
  const files = filesOf({ ...BASE, '/m/generation_config.json': '{"eos_token_id": [3048, 3046]}' });
  for (const path of ['/m', '/m/tokenizer.json']) {
    const text = await loadModelText(files, path, 3072);
    assert.equal(text.tokenizer.eosIds, [3048, 3046]);
    assert.ok(text.template);
    assert.equal(
      [...text.files.keys()],
      ['tokenizer.json', 'tokenizer_config.json', 'generation_config.json'],
    );
  }
});

test('chat_template.jinja goes before the config; without both there is no template', async () => {
  const own = await loadModelText(filesOf({ ...BASE, '/m/chat_template.jinja': 'own' }), '/m', 3072);
  assert.is(own.template!.source, 'own');
  const none = await loadModelText(filesOf({ '/m/tokenizer.json': TOKENIZER_JSON }), '/m', 3072);
  assert.is(none.template, null);
});

test('what does not fit is refused', async () => {
  const code = async (files: Record<string, string>, vocabSize = 3072): Promise<string> =>
    (await caughtAll(loadModelText(filesOf(files), '/m', vocabSize)))[0]!.code;
  assert.is(await code({}), 'Q4261');
  assert.is(await code(BASE, 3071), 'Q4263');
  assert.is(await code({ ...BASE, '/m/generation_config.json': '{"eos_token_id": 3072}' }), 'Q4263');
  assert.is(await code({ ...BASE, '/m/generation_config.json': '{"eos_token_id": "x"}' }), 'Q4263');
  assert.is(await code({ ...BASE, '/m/generation_config.json': '{' }), 'Q4260');
  assert.is(await code({ ...BASE, '/m/chat_template.jinja': '{% if %}' }), 'Q4302');
});

test.run();
