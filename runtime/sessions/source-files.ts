/** Finds the tensors of a checkpoint: one safetensors file, or shards under an index. */
import { Q4Error } from '../errors.js';
import type { EntryOf, FileIndex, TensorFiles } from '../engine/types.js';
import { parseJson } from '../text/tokenizer-file.js';

/** The part of a stage's files that is needed here. */
export interface ReadableFiles {
  exists(path: string): Promise<boolean>;
  readText(path: string, maxBytes?: number): Promise<string>;
  join(...parts: string[]): string;
}

const SINGLE = 'model.safetensors';
const INDEX = 'model.safetensors.index.json';
const MOST_INDEX_BYTES = 64 * 1024 * 1024;

const addAll = (entries: Map<string, EntryOf>, index: FileIndex): void => {
  for (const entry of index.entries) entries.set(entry.name, { index, entry });
};

/** Name of each tensor → name of its shard, as the index says. */
async function readWeightMap(files: ReadableFiles, path: string): Promise<Map<string, string>> {
  const json = parseJson(await files.readText(path, MOST_INDEX_BYTES), path, 'Q4284') as {
    weight_map?: unknown;
  } | null;
  const map = json?.weight_map;
  const refuse = (message: string, found: unknown, entry?: string): never => {
    throw new Q4Error('Q4284', message, {
      file: path,
      ...(entry !== undefined && { entry }),
      expected: 'weight_map: {tensor: file name in this directory}',
      found: JSON.stringify(found)?.slice(0, 200) ?? 'nothing',
    });
  };
  if (typeof map !== 'object' || map === null || Array.isArray(map))
    return refuse('the shard index has no weight_map', map);
  const shards = new Map<string, string>();
  for (const [name, shard] of Object.entries(map)) {
    const plain =
      typeof shard === 'string' && /^[^/\\\0]+\.safetensors$/.test(shard) && !shard.startsWith('..');
    if (!plain) refuse('the shard index names a file outside its directory', shard, name);
    shards.set(name, shard as string);
  }
  return shards;
}

async function readShards(
  files: ReadableFiles,
  tensors: TensorFiles,
  directory: string,
): Promise<Map<string, EntryOf>> {
  const path = files.join(directory, INDEX);
  const map = await readWeightMap(files, path);
  const entries = new Map<string, EntryOf>();
  for (const shard of [...new Set(map.values())].sort()) {
    const file = files.join(directory, shard);
    if (!(await files.exists(file)))
      throw new Q4Error('Q4284', 'a shard that the index names is missing', {
        file,
        hint: 'download it again',
      });
    const index = await tensors.indexSafetensors(file);
    for (const entry of index.entries) {
      if (map.get(entry.name) === shard) continue;
      throw new Q4Error('Q4284', `the shard holds a tensor that the index places elsewhere`, {
        file,
        entry: entry.name,
        offset: entry.offset,
        expected: map.get(entry.name) ?? 'no such tensor',
        found: shard,
      });
    }
    addAll(entries, index);
  }
  const missing = [...map.keys()].filter((name) => !entries.has(name));
  if (missing.length > 0)
    throw new Q4Error('Q4284', `${missing.length} tensors are not in the shards that the index names`, {
      file: files.join(directory, map.get(missing[0]!)!),
      entry: missing[0]!,
      expected: missing.slice(0, 8).join(', '),
      hint: 'every shard and the index must come from the same checkpoint',
    });
  return entries;
}

/** Every tensor of a safetensors checkpoint. `path` is a directory or a .safetensors file. */
export async function readTensors(
  files: ReadableFiles,
  tensors: TensorFiles,
  path: string,
): Promise<Map<string, EntryOf>> {
  const single = path.endsWith('.safetensors') ? path : files.join(path, SINGLE);
  if (path.endsWith('.safetensors') || (await files.exists(single))) {
    const entries = new Map<string, EntryOf>();
    addAll(entries, await tensors.indexSafetensors(single));
    return entries;
  }
  if (await files.exists(files.join(path, INDEX))) return readShards(files, tensors, path);
  throw new Q4Error('Q4287', 'the directory holds no safetensors checkpoint', {
    file: path,
    expected: `${SINGLE}, or ${INDEX} with its shards`,
  });
}
