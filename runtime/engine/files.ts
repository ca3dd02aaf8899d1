/** Tensor files: `.dat` and safetensors, indexed, loaded and written by native code. See types.ts for the contract. */
import { Q4Error } from '../errors.js';
import { fileAddon, fileCall, longFileCall, storeHandle, type NativeIndex } from './file-calls.js';
import { transcode } from './file-transcoding.js';
import { writeTensorFile } from './file-writing.js';
import type {
  FileEntry,
  FileIndex,
  FileType,
  LoadItem,
  LoadOptions,
  LoadResult,
  NumericArray,
  Store,
  TensorFiles,
} from './types.js';

/** Frozen: an index is what was checked, and stays it. */
function toIndex(native: NativeIndex): FileIndex {
  const entries = native.entries.map((entry) =>
    Object.freeze({ ...entry, type: entry.type as FileType, shape: Object.freeze(entry.shape) }),
  );
  // Without a prototype: keys come from the file.
  const metadata = Object.assign(Object.create(null) as object, Object.fromEntries(native.metadata));
  return Object.freeze({
    ...native,
    entries: Object.freeze(entries),
    metadata: Object.freeze(metadata as Record<string, string>),
  });
}

async function index(path: string, format: 'dat' | 'safetensors'): Promise<FileIndex> {
  return toIndex(await fileCall(() => fileAddon().fileIndex(path, format)));
}

function findEntry(byName: ReadonlyMap<string, FileEntry>, file: FileIndex, name: string): FileEntry {
  const entry = byName.get(name);
  if (entry) return entry;
  throw new Q4Error('Q4228', `the file has no entry '${name}'`, {
    file: file.path,
    entry: name,
    hint: `\`q4run inspect ${file.path}\` lists its ${file.entries.length} entries`,
  });
}

const byName = (file: FileIndex): Map<string, FileEntry> => new Map(file.entries.map((e) => [e.name, e]));

async function load(
  store: Store,
  file: FileIndex,
  items: readonly LoadItem[],
  options: LoadOptions = {},
): Promise<LoadResult> {
  const entries = byName(file);
  const requests = items.map(({ entry, tensor, part }) => ({
    entry: findEntry(entries, file, entry),
    tensor,
    part,
  }));
  const result = await longFileCall(options, (cancel, onProgress) =>
    fileAddon().fileLoad(
      storeHandle(store),
      file,
      requests,
      options.allowNonFinite ?? false,
      cancel,
      onProgress,
    ),
  );
  // Native progress is throttled: the last word is ours.
  options.onProgress?.(result.bytes, result.bytes);
  return result;
}

async function readEntry(file: FileIndex, name: string): Promise<NumericArray> {
  const entry = findEntry(byName(file), file, name);
  return (await fileCall(() => fileAddon().fileRead(file, entry))) as NumericArray;
}

export const nativeFiles: TensorFiles = {
  indexDat: (path) => index(path, 'dat'),
  indexSafetensors: (path) => index(path, 'safetensors'),
  load,
  readEntry,
  writeDat: (store, path, items, options = {}) => writeTensorFile('dat', store, path, items, options),
  writeSafetensors: (store, path, items, options = {}) =>
    writeTensorFile('safetensors', store, path, items, options),
  transcode,
};
