/** `npm run assets`: writes the corpus and the tokenizer of pipelines/assets anew. The same bytes every time. */
import { mkdir, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { corpusFiles } from './corpus-files.js';
import { tokenizerFiles } from './tokenizer-files.js';

const assets = join(dirname(fileURLToPath(import.meta.url)), '../../pipelines/assets');
const corpus = corpusFiles();
const files = { ...corpus, ...tokenizerFiles(Object.values(corpus)) };
for (const [name, text] of Object.entries(files)) {
  await mkdir(dirname(join(assets, name)), { recursive: true });
  await writeFile(join(assets, name), text);
  process.stdout.write(`${name}: ${Buffer.byteLength(text)} bytes\n`);
}
