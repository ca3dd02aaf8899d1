/**
 * The tensors of a checkpoint: `weights.dat`, which loads like any other weight file, and `optimizer.dat` with masters
 * and moments. Both hold every value exactly, whatever dtype the original file had.
 */
import { Q4Error } from '../errors.js';
import type { FileType, LoadItem, Store, TensorFiles, WriteItem, WriteResult } from '../engine/types.js';
import type { ModelParameter, ScaleLevel, WeightStorage } from '../models/model.js';
import type { LoadedModel } from './model.js';
import { datEntries, matchWeights, type Destination } from './weight-file.js';

export const WEIGHTS_FILE = 'weights.dat';
export const OPTIMIZER_FILE = 'optimizer.dat';

/** What a run depends on is saved whatever it is; a file for others must be finite. */
const AS_IT_IS = { allowNonFinite: true } as const;

const typeOf = (dtype: WeightStorage['dtype']): FileType => dtype as FileType;

/** Every parameter as it is held now. */
const exactly = ({ name, shape, weight, storage }: ModelParameter): Destination => ({
  name,
  shape,
  tensor: weight.name,
  nvfp4: weight.dtype === 'nvfp4',
  globalScale: storage.globalScale,
  type: weight.dtype === 'nvfp4' ? 'u8' : typeOf(weight.dtype),
});

export interface ExportOptions {
  /** Element type of plain tensors: as the source had it, or one for all. */
  readonly dtype: 'keep' | 'f16' | 'bf16' | 'f32';
  readonly globalScale: 'keep' | ScaleLevel;
}

/** Every parameter as a file for others holds it. */
export function exportEntries(model: LoadedModel, options: ExportOptions): WriteItem[] {
  return datEntries(
    model.layout.parameters.map((parameter) => {
      const held = exactly(parameter);
      const origin = model.origin.get(parameter.name);
      if (held.nvfp4) {
        if (options.globalScale !== 'keep' && options.globalScale !== held.globalScale)
          throw new Q4Error(
            'Q4502',
            `${held.name} has ${held.globalScale} global scales, not ${options.globalScale}`,
            {
              hint: `set global_scale: ${options.globalScale} on build-model, which quantises with such scales`,
              at: ['global_scale'],
            },
          );
        return held;
      }
      const kept = origin && origin.storage.dtype !== 'nvfp4' ? origin.type : held.type;
      return { ...held, type: options.dtype === 'keep' ? kept : options.dtype };
    }),
  );
}

const plain = (store: Store, tensor: string): WriteItem => {
  const { dtype, shape } = store.info(tensor);
  return { name: tensor, type: typeOf(dtype), shape, tensor, part: 'data' };
};

/** Masters that are tensors of their own, then moments. */
const stateTensors = (model: LoadedModel, moments: readonly string[]): string[] => [
  ...model.layout.trainable.flatMap(({ weight, training }) =>
    training!.master.name === weight.name ? [] : [training!.master.name],
  ),
  ...moments,
];

/** Writes both files into `directory`; without moments, which a training session has, only the first. */
export async function saveState(
  files: TensorFiles,
  model: LoadedModel,
  path: (file: string) => string,
  moments: readonly string[] | null,
): Promise<WriteResult> {
  const { store, layout } = model;
  const entries = datEntries(layout.parameters.map(exactly));
  const weights = await files.writeDat(store, path(WEIGHTS_FILE), entries, AS_IT_IS);
  if (moments) {
    const items = stateTensors(model, moments).map((tensor) => plain(store, tensor));
    await files.writeDat(store, path(OPTIMIZER_FILE), items, AS_IT_IS);
  }
  return weights;
}

/** Reads both files back over the model's tensors. The session that made the moments must be open. */
export async function restoreState(
  files: TensorFiles,
  model: LoadedModel,
  path: (file: string) => string,
  moments: readonly string[],
): Promise<void> {
  const { store, layout } = model;
  const weights = await files.indexDat(path(WEIGHTS_FILE));
  await files.load(store, weights, matchWeights(layout.config, weights, true).items, AS_IT_IS);
  const optimizer = await files.indexDat(path(OPTIMIZER_FILE));
  const wanted = stateTensors(model, moments);
  const held = new Set(optimizer.entries.map(({ name }) => name));
  const missing = wanted.filter((name) => !held.has(name));
  if (missing.length > 0 || held.size !== wanted.length)
    throw new Q4Error('Q4503', 'the checkpoint is of a run with other trainable parameters', {
      file: optimizer.path,
      expected: `${wanted.length} tensors`,
      found: `${held.size} tensors${missing.length > 0 ? `, without ${missing[0]!}` : ''}`,
      hint: 'start anew with --fresh, or undo the change of freeze or masters',
    });
  const items = wanted.map((name): LoadItem => ({ entry: name, tensor: name, part: 'data' }));
  await files.load(store, optimizer, items, AS_IT_IS);
}
