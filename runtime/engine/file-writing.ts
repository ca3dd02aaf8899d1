/** Writes tensor files: aside, item by item, read back and renamed into place; nothing stays when it fails. */
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { mkdir } from 'node:fs/promises';
import { dirname } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { Q4Error } from '../errors.js';
import { elementCount } from '../program.js';
import { addon, type Handle } from './addon.js';
import { fileAddon, fileCall, longFileCall, storeHandle } from './file-calls.js';
import type { FileType, LoadOptions, SafetensorsOptions, Store, WriteItem, WriteResult } from './types.js';

async function sha256(path: string): Promise<string> {
  const hash = createHash('sha256');
  await pipeline(createReadStream(path, { highWaterMark: 1 << 20 }), hash);
  return hash.digest('hex');
}

export async function makeDirectory(path: string): Promise<void> {
  try {
    await mkdir(dirname(path), { recursive: true });
  } catch (cause) {
    throw new Q4Error('Q4413', 'cannot make the directory for the file', {
      file: path,
      found: (cause as Error).message,
      cause,
    });
  }
}

/** What the native writer takes for the item at `entry`. */
function request(item: WriteItem, entry: number): object {
  if ('data' in item) return { entry, data: item.data };
  return { entry, tensor: item.tensor, part: item.part };
}

const WIDE: Partial<Record<FileType, number>> = { i16: 2, f16: 2, bf16: 2, i32: 4, f32: 4, i64: 8, f64: 8 };
const itemBytes = ({ type, shape }: WriteItem): number => elementCount(shape) * (WIDE[type] ?? 1);

/** Writes every item; the caller commits. */
async function writeItems(
  writer: Handle,
  store: Handle | null,
  items: readonly WriteItem[],
  options: SafetensorsOptions,
): Promise<void> {
  const allowNonFinite = options.allowNonFinite ?? false;
  const write = (requests: object[], from: LoadOptions): Promise<void> =>
    longFileCall(from, (cancel, onProgress) =>
      fileAddon().fileWrite(writer, store, requests, allowNonFinite, cancel, onProgress),
    );
  const { beforeItem, onProgress, signal } = options;
  const total = items.reduce((sum, item) => sum + itemBytes(item), 0);
  if (!beforeItem) {
    await write(items.map(request), options);
    onProgress?.(total, total); // native progress is throttled: the last word is ours
    return;
  }
  let done = 0;
  for (const [i, item] of items.entries()) {
    await beforeItem(item, i);
    await write([request(item, i)], signal ? { signal } : {});
    onProgress?.((done += itemBytes(item)), total);
  }
}

export async function writeTensorFile(
  format: 'dat' | 'safetensors',
  store: Store | null,
  path: string,
  items: readonly WriteItem[],
  options: SafetensorsOptions,
): Promise<WriteResult> {
  const started = performance.now();
  const handle = store && storeHandle(store);
  const entries = items.map(({ name, type, shape }) => ({ name, type, shape }));
  await makeDirectory(path);
  const writer = await fileCall(() =>
    fileAddon().fileCreate(path, format, entries, Object.entries(options.metadata ?? {})),
  );
  let bytes: number;
  try {
    await writeItems(writer, handle, items, options);
    bytes = await fileCall(() => fileAddon().fileCommit(writer));
  } finally {
    // Before the commit this removes the temporary file; after it, nothing is left to do.
    addon().dispose(writer);
  }
  return { bytes, sha256: await sha256(path), seconds: (performance.now() - started) / 1000 };
}
