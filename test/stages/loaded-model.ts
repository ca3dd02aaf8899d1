/** Models in a store without a pipeline around them. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';

import type { Engine } from '../../runtime/engine/engine.js';
import { parseQwen3Config } from '../../runtime/models/config.js';
import { buildFromWeights, type BuildOptions } from '../../runtime/sessions/build.js';
import { loadWeights } from '../../runtime/sessions/load.js';
import type { LoadedModel } from '../../runtime/sessions/model.js';
import { matchWeights } from '../../runtime/sessions/weight-file.js';

const OPTIONS: BuildOptions = { masters: 'fp32', freeze: [], globalScale: 'keep', sharedGlobalScale: false };

/** The model.dat and config.json of a folder. */
export async function loadedModel(
  engine: Engine,
  directory: string,
  options: Partial<BuildOptions> = {},
): Promise<LoadedModel> {
  const configText = readFileSync(join(directory, 'config.json'), 'utf8');
  const path = join(directory, 'model.dat');
  const index = await engine.files.indexDat(path);
  const matched = matchWeights(parseQwen3Config(JSON.parse(configText)), index, true);
  const { store } = await loadWeights(engine, index, matched);
  const { config, origin } = matched;
  const weights = { config, configText, origin, store, text: null, path, dispose: () => store.dispose() };
  return buildFromWeights(engine, weights, { ...OPTIONS, ...options }, 'f32');
}
