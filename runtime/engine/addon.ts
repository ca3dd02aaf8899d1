/** The one file that touches the native addon: loads it and types its flat functions. */
import { createRequire } from 'node:module';
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Q4Error } from '../errors.js';

/** An opaque native handle; `dispose` may be called on it any number of times. */
export type Handle = { readonly __native: unique symbol };

export interface NativeDeviceInfo {
  kind: 'cpu' | 'cuda';
  name: string;
  instructions: string;
  index: number;
  threads: number;
  totalBytes: number;
  freeBytes: number;
}

/** Everything that native/binding registers, as registered. */
export interface Addon {
  openDevice(kind: string, index: number, threads: number, reference: boolean): Handle;
  probe(): { cudaBuilt: boolean; cudaTargets: string; cudaReason: string; cudaDevices: NativeDeviceInfo[] };
  deviceInfo(device: Handle): NativeDeviceInfo & { allocatedBytes: number; peakBytes: number };
  dispose(handle: Handle): void;
  createCancel(): Handle;
  cancel(flag: Handle): void;
  createStore(device: Handle): Handle;
  createArena(device: Handle, bytes: number): Handle;
  storeAllocate(store: Handle, name: string, dtype: string, shape: readonly number[]): void;
  storeHas(store: Handle, name: string): boolean;
  storeInfo(store: Handle, name: string): { name: string; dtype: string; shape: number[]; bytes: number };
  storeNames(store: Handle): string[];
  storeBytes(store: Handle): number;
  storeRename(store: Handle, from: string, to: string): void;
  storeFree(store: Handle, name: string): void;
  storeRead(store: Handle, name: string, part: string): Float32Array | Int32Array | Uint16Array | Uint8Array;
  storeWrite(store: Handle, name: string, part: string, data: ArrayBufferView): void;
  loadProgram(store: Handle, program: unknown, arena: Handle | null): Handle;
  executableRun(executable: Handle, cancel: Handle, profile: boolean): Promise<Float64Array | undefined>;
  executableDecode(
    executable: Handle,
    tokens: string,
    maxTokens: number,
    stopTokens: readonly number[],
    cancel: Handle,
    onStep: (tokens: Int32Array) => number[] | undefined,
  ): Promise<{ steps: number; cancelled: boolean }>;
  /** Functions of native/binding/files.cpp, typed in files.ts. */
  readonly [name: string]: unknown;
}

let loaded: Addon | undefined;

/** The package root: the nearest folder above this file that holds package.json. */
function packageRoot(): string {
  let folder = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(folder, 'package.json'))) {
    const parent = dirname(folder);
    if (parent === folder) throw new Q4Error('Q4900', 'q4run cannot find its own package.json');
    folder = parent;
  }
  return folder;
}

/** Loads the addon once. Q4404 when it was not built or does not load on this machine. */
export function addon(): Addon {
  if (loaded) return loaded;
  const path = process.env['Q4RUN_ADDON'] ?? join(packageRoot(), 'build', 'Release', 'q4run_native.node');
  try {
    loaded = createRequire(import.meta.url)(path) as Addon;
  } catch (cause) {
    throw new Q4Error('Q4404', `the native addon does not load: ${(cause as Error).message.split('\n')[0]}`, {
      file: path,
      cause,
      hint: 'run `npm run build:native` in the package and look at the first error',
    });
  }
  return loaded;
}
