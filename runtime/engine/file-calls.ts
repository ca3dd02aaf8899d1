/** What all calls on tensor files share: errors with their place, cancelling, progress that may throw. */
import { Q4Error, toQ4Error, type ErrorDetails } from '../errors.js';
import { addon, type Handle } from './addon.js';
import type { LoadOptions, Store } from './types.js';

/** Native functions of native/binding/files.cpp and file_writer.cpp, as registered. */
export interface FileAddon {
  fileIndex(path: string, format: string): Promise<NativeIndex>;
  fileLoad(
    store: Handle,
    index: object,
    items: readonly object[],
    allowNonFinite: boolean,
    cancel: Handle,
    onProgress?: Progress,
  ): Promise<{ bytes: number; seconds: number; scaleBlocks: number; floorBlocks: number }>;
  fileRead(index: object, entry: object): Promise<ArrayBufferView>;
  fileCreate(
    path: string,
    format: string,
    entries: readonly object[],
    metadata: readonly (readonly [string, string])[],
  ): Promise<Handle>;
  fileWrite(
    writer: Handle,
    store: Handle | null,
    items: readonly object[],
    allowNonFinite: boolean,
    cancel: Handle,
    onProgress?: Progress,
  ): Promise<void>;
  fileCommit(writer: Handle): Promise<number>;
  fileTranscode(job: object, cancel: Handle, onProgress?: Progress): Promise<NativeTranscodeReport>;
}

export type Progress = (doneBytes: number, totalBytes: number) => void;

export interface NativeIndex {
  format: 'dat' | 'safetensors';
  path: string;
  fileBytes: number;
  modifiedNs: bigint;
  entries: { name: string; type: string; shape: number[]; offset: number; bytes: number }[];
  metadata: [string, string][];
}

export interface NativeTranscodeReport {
  writer: Handle;
  sourceBytes: number;
  seconds: number;
  quantised: {
    action: number;
    elements: number;
    amax: number;
    globalScale: number;
    signal: number;
    noise: number;
    zeroCodes: number;
    saturated: number;
    floorBlocks: number;
  }[];
}

export const fileAddon = (): FileAddon => addon() as unknown as FileAddon;

/** The native handle of a store of this engine. */
export function storeHandle(store: Store): Handle {
  const { handle } = store as Store & { handle?: Handle };
  if (handle === undefined) throw new Q4Error('Q4900', 'the store belongs to no engine');
  return handle;
}

/** Native errors about files carry their parts beside the message; they become details. */
export function toFileError(thrown: unknown): Q4Error {
  const error = toQ4Error(thrown);
  const parts = error.details.cause as Partial<Record<string, unknown>> | undefined;
  if (error === thrown || typeof parts?.['brief'] !== 'string') return error;
  const details: ErrorDetails = { ...error.details };
  for (const key of ['file', 'entry', 'expected', 'found'] as const) {
    const value = parts[key];
    if (typeof value === 'string' && value !== '') details[key] = value;
  }
  if (typeof parts['offset'] === 'number') details.offset = parts['offset'];
  const entry = details.entry === undefined ? '' : `entry '${details.entry}'`;
  const byte = details.offset === undefined ? '' : `byte ${details.offset}`;
  const place = [entry, byte].filter((part) => part !== '').join(', ');
  return new Q4Error(error.code, parts['brief'] + (place === '' ? '' : ` (${place})`), details);
}

/** Awaits a native file call; what it throws becomes a Q4Error with file, entry and offset. */
export async function fileCall<T>(call: () => Promise<T>): Promise<T> {
  try {
    return await call();
  } catch (error) {
    throw toFileError(error);
  }
}

/**
 * The same for long calls: they follow `signal`, and a progress callback that throws ends the call with what it threw.
 */
export async function longFileCall<T>(
  options: LoadOptions,
  call: (cancel: Handle, onProgress?: Progress) => Promise<T>,
): Promise<T> {
  const { signal, onProgress } = options;
  const flag = addon().createCancel();
  const cancel = (): void => addon().cancel(flag);
  let thrown: { error: unknown } | undefined;
  let settled = false;
  const report: Progress | undefined =
    onProgress &&
    ((doneBytes, totalBytes) => {
      if (settled || thrown) return;
      try {
        onProgress(doneBytes, totalBytes);
      } catch (error) {
        thrown = { error };
        cancel();
      }
    });
  if (signal?.aborted) cancel();
  signal?.addEventListener('abort', cancel, { once: true });
  try {
    const result = await call(flag, report);
    if (!thrown) return result;
  } catch (error) {
    if (!thrown) throw toFileError(error);
  } finally {
    settled = true;
    signal?.removeEventListener('abort', cancel);
    addon().dispose(flag);
  }
  throw thrown.error;
}
