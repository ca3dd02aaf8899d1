/** What training did to the weights people will run: the share of NVFP4 codes that are no longer those of the file. */
import type { Engine } from '../engine/types.js';
import { countChangedProgram } from '../models/quantise-programs.js';
import { elementCount } from '../program.js';
import { ProgramHost } from './host.js';
import type { LoadedModel } from './model.js';
import { matchWeights } from './weight-file.js';

const AGAINST = 'initial.';

/**
 * Reads the codes of the original `.dat` beside the model's and counts those that differ. Null when the model was made
 * from a seed, or holds no NVFP4 weight that trains.
 */
export async function changedCodes(engine: Engine, model: LoadedModel): Promise<number | null> {
  const { layout, store, path } = model;
  if (path === null || layout.requantised.length === 0) return null;
  const host = new ProgramHost(engine, store);
  try {
    const { run } = host.get('count', () =>
      countChangedProgram({ model: layout, device: engine.device.kind, against: AGAINST }),
    );
    const index = await engine.files.indexDat(path);
    const names = new Set(layout.requantised.map(({ name }) => name));
    const { items, singleLevel } = matchWeights(layout.config, index, false);
    const wanted = items.filter(({ tensor }) => names.has(tensor));
    await engine.files.load(
      store,
      index,
      wanted.map((item) => ({ ...item, tensor: AGAINST + item.tensor })),
    );
    for (const name of singleLevel)
      if (names.has(name)) store.write(AGAINST + name, Float32Array.of(1), 'global_scale');
    await run.run();
    const changed = store.read('changed') as Int32Array;
    const codes = layout.requantised.reduce((sum, { shape }) => sum + elementCount(shape), 0);
    return changed.reduce((sum, n) => sum + n, 0) / codes;
  } finally {
    host.dispose();
  }
}
