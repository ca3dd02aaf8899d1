/**
 * The typed door to native code, as interfaces: what stages and tests may rely on. `engine.ts` builds it over the addon.
 * All methods throw Q4Error. Handles may be disposed twice; using one after disposal is an error, never a crash.
 */
import type { DType, Program } from '../program.js';

export type NumericArray =
  | Float32Array
  | Float64Array
  | Int32Array
  | Int16Array
  | Int8Array
  | Uint8Array
  | Uint16Array
  | BigInt64Array;

export interface DeviceInfo {
  readonly kind: 'cpu' | 'cuda';
  /** "AMD EPYC", "NVIDIA H200" */
  readonly name: string;
  /** "reference", "avx2", "avx512", "sm_90a" */
  readonly instructions: string;
  readonly index: number;
  readonly threads: number;
  readonly totalBytes: number;
  readonly freeBytes: number;
}

export interface TensorInfo {
  readonly name: string;
  readonly dtype: DType;
  readonly shape: readonly number[];
  readonly bytes: number;
}

/** Parts of an nvfp4 tensor as they stand in files; plain tensors have only `data`. */
export type TensorPart = 'data' | 'qdata' | 'scale' | 'global_scale';

/** Named tensors in device memory: weights, masters, moments, caches, inputs, outputs. */
export interface Store {
  /** Takes zeroed memory; a name that exists with the same dtype and shape is an error too. */
  allocate(name: string, dtype: DType, shape: readonly number[]): void;
  has(name: string): boolean;
  info(name: string): TensorInfo;
  list(): TensorInfo[];
  /** Bytes now held. */
  readonly bytes: number;
  /** A copy as raw elements: f32 → Float32Array, i32 → Int32Array, u8 and codes → Uint8Array, 16-bit → Uint16Array. */
  read(name: string, part?: TensorPart): NumericArray;
  /** Overwrites the whole tensor (or part); the array's type and length must match. */
  write(name: string, data: NumericArray, part?: TensorPart): void;
  free(name: string): void;
  /** Loaded programs stay bound to the tensor. */
  rename(from: string, to: string): void;
  dispose(): void;
}

/** Scratch memory shared by programs that never run at the same time. */
export interface Arena {
  readonly bytes: number;
  dispose(): void;
}

export interface OpTime {
  readonly index: number;
  readonly op: string;
  readonly scope: string;
  readonly phase: string;
  readonly seconds: number;
}

export interface RunOptions {
  /** Checked between ops; the run then rejects with Q4501 and the store may hold a half-done step. */
  readonly signal?: AbortSignal;
  readonly profile?: boolean;
}

export interface RunResult {
  readonly seconds: number;
  /** Only with `profile`. */
  readonly ops?: readonly OpTime[];
}

export interface DecodeOptions {
  /** Store tensor i32 [B] that a run of the program fills with the sampled tokens. */
  readonly tokens: string;
  readonly maxTokens: number;
  /** A row ends after one of these; the loop ends when all rows have. */
  readonly stopTokens: readonly number[];
  /**
   * Called in order for every sampled row that has not ended yet; return true to end that row (a stop string). What it
   * throws ends the loop, and the decode rejects with it.
   */
  readonly onToken?: (row: number, token: number) => boolean | void;
  readonly signal?: AbortSignal;
}

export interface DecodeResult {
  /** Per row, in order; the stop token is included. */
  readonly tokens: readonly (readonly number[])[];
  readonly finish: readonly ('stop' | 'length' | 'cancelled')[];
  readonly seconds: number;
  /**
   * Program runs whose tokens were told. On a device that runs ahead, one more may have gone over the program's tensors
   * after the last of them (never beyond maxTokens): a caller that goes on writes its inputs anew.
   */
  readonly steps: number;
}

/** A checked program bound to a store and an arena. Runs off the JavaScript thread, one at a time. */
export interface Executable {
  readonly program: Program;
  run(options?: RunOptions): Promise<RunResult>;
  /** Runs the program again and again natively, streaming tokens out, until every row has ended. */
  decode(options: DecodeOptions): Promise<DecodeResult>;
  dispose(): void;
}

/** One tensor of a `.dat` or safetensors file. */
export interface FileEntry {
  readonly name: string;
  /** Element type as the format spells it, normalised: u8 i8 i16 i32 i64 f16 bf16 f32 f64 bool e2m1x2 e4m3. */
  readonly type: FileType;
  readonly shape: readonly number[];
  /** Of the payload, from the start of the file. */
  readonly offset: number;
  readonly bytes: number;
}

export type FileType =
  'u8' | 'i8' | 'i16' | 'i32' | 'i64' | 'f16' | 'bf16' | 'f32' | 'f64' | 'bool' | 'e2m1x2' | 'e4m3';

/** A checked index of a tensor file, plain data. The file must not change between indexing and reading (size and mtime are compared). */
export interface FileIndex {
  readonly format: 'dat' | 'safetensors';
  readonly path: string;
  readonly fileBytes: number;
  readonly modifiedNs: bigint;
  readonly entries: readonly FileEntry[];
  /** safetensors `__metadata__`; empty for `.dat`. */
  readonly metadata: Readonly<Record<string, string>>;
}

/** Where a file entry goes. Plain entries are converted to the tensor's dtype; codes and scales are copied as they are. */
export interface LoadItem {
  readonly entry: string;
  readonly tensor: string;
  readonly part: TensorPart;
}

export interface LoadOptions {
  /** Accept NaN and infinities in plain tensors. Default false. */
  readonly allowNonFinite?: boolean;
  readonly onProgress?: (doneBytes: number, totalBytes: number) => void;
  readonly signal?: AbortSignal;
}

export interface LoadResult {
  readonly bytes: number;
  readonly seconds: number;
  /** Block scales loaded, and how many of them are exactly 2^-6, the predecessor's clamp. */
  readonly scaleBlocks: number;
  readonly floorBlocks: number;
}

/** What stands in a written file under `name`: a store tensor's part (converted to `type` if plain), or host data. */
export type WriteItem =
  | {
      readonly name: string;
      readonly type: FileType;
      readonly shape: readonly number[];
      readonly tensor: string;
      readonly part: TensorPart;
    }
  | {
      readonly name: string;
      readonly type: FileType;
      readonly shape: readonly number[];
      readonly data: NumericArray;
    };

export interface WriteResult {
  readonly bytes: number;
  readonly sha256: string;
  readonly seconds: number;
}

export interface WriteOptions extends LoadOptions {
  /**
   * Called before each item is written, in order: makes its tensor, so that a whole model need not be in the store at
   * once (and may free the one before). Without it all tensors must be there when writing begins.
   */
  readonly beforeItem?: (item: WriteItem, index: number) => void | Promise<void>;
}

export interface SafetensorsOptions extends WriteOptions {
  /** `__metadata__`; transformers expects `{ format: 'pt' }`. */
  readonly metadata?: Readonly<Record<string, string>>;
}

/** An entry of an indexed file. */
export interface EntryOf {
  readonly index: FileIndex;
  readonly entry: FileEntry;
}

/** Values of a tensor in files: plain, or the parts of an NVFP4 matrix (each part may stand in a file of its own). */
export type ValueSource =
  | { readonly plain: EntryOf }
  | { readonly codes: EntryOf; readonly scales: EntryOf; readonly globalScale: number };

/** How block scales are found when quantising: native/core/weight_kernels.h has the formulas. */
export type ScaleSearch = 'amax' | 'four_over_six' | 'mse';

/** One tensor of a file that is made from others. */
export type TranscodeItem = {
  readonly name: string;
  readonly shape: readonly number[];
} & (
  | { readonly kind: 'data'; readonly type: FileType; readonly data: NumericArray }
  /** The bytes as they stand, checked as this part. */
  | { readonly kind: 'copy'; readonly type: FileType; readonly source: EntryOf; readonly part: TensorPart }
  /** The values, rounded to nearest even. */
  | { readonly kind: 'convert'; readonly type: FileType; readonly source: ValueSource }
  /** Becomes NAME.qdata, NAME.scale and, unless it is single-level, NAME.global_scale. `shape` is [out, in]. */
  | {
      readonly kind: 'quantise';
      readonly source: ValueSource;
      readonly scales: ScaleSearch;
      readonly twoLevel: boolean;
      /** Items of one group stand side by side and share a global scale. */
      readonly group: string;
    }
);

/** What quantising did to a tensor. */
export interface Quantised {
  readonly name: string;
  readonly elements: number;
  /** Largest magnitude of the group. */
  readonly amax: number;
  readonly globalScale: number;
  /** Σ x² and Σ (x − decoded)². */
  readonly signal: number;
  readonly noise: number;
  /** Codes of magnitude 0; values beyond the largest code; blocks whose scale is at or below the least E4M3 number. */
  readonly zeroCodes: number;
  readonly saturated: number;
  readonly floorBlocks: number;
}

/** A file that is whole, but not yet in place. */
export interface Transcoded {
  readonly sourceBytes: number;
  readonly seconds: number;
  /** In the order of the items. */
  readonly quantised: readonly Quantised[];
  /** Synced, read back by the parser, renamed. @returns the file's bytes */
  commit(): Promise<number>;
  /** Before the commit this removes what was written. */
  dispose(): void;
}

export interface TranscodeOptions {
  readonly onProgress?: (doneBytes: number, totalBytes: number) => void;
  readonly signal?: AbortSignal;
  /** Of a safetensors file. */
  readonly metadata?: Readonly<Record<string, string>>;
}

/** Tensor files: checked before memory is taken, streamed to and from the device, never through JavaScript. */
export interface TensorFiles {
  indexDat(path: string): Promise<FileIndex>;
  indexSafetensors(path: string): Promise<FileIndex>;
  /** Fills tensors that exist already; when it throws, they are half filled: free them. */
  load(
    store: Store,
    index: FileIndex,
    items: readonly LoadItem[],
    options?: LoadOptions,
  ): Promise<LoadResult>;
  /**
   * One entry as host data, as it stands in the file (golden files, tests): f32 → Float32Array, f16 and bf16 →
   * Uint16Array, i64 → BigInt64Array, codes, scales, bool and u8 → Uint8Array.
   */
  readEntry(index: FileIndex, entry: string): Promise<NumericArray>;
  /**
   * Written aside, fsynced, read back by the parser, renamed. An existing file is replaced at the rename only; parent
   * directories are made. The device must not run a program meanwhile.
   */
  writeDat(
    store: Store | null,
    path: string,
    items: readonly WriteItem[],
    options?: WriteOptions,
  ): Promise<WriteResult>;
  /** The same for one safetensors file; sharding is up to the caller. Packed E2M1 codes become U8. */
  writeSafetensors(
    store: Store | null,
    path: string,
    items: readonly WriteItem[],
    options?: SafetensorsOptions,
  ): Promise<WriteResult>;
  /**
   * Writes a file from entries of others, in pieces and on all cores, never through a device: memory does not grow with
   * the model. All values have been looked at when it resolves; commit puts the file in place, dispose removes it.
   * Q4219/Q4220 for a value, Q4226 for one that the new type cannot hold.
   */
  transcode(
    path: string,
    format: 'dat' | 'safetensors',
    items: readonly TranscodeItem[],
    options?: TranscodeOptions,
  ): Promise<Transcoded>;
}

export interface EngineOptions {
  readonly device: 'cpu' | 'cuda';
  readonly index?: number;
  /** cpu: 0 = all cores. */
  readonly threads?: number;
  /** cpu: the plain scalar fp32 path. */
  readonly reference?: boolean;
}

export interface Engine {
  readonly device: DeviceInfo;
  readonly files: TensorFiles;
  /** Device memory held now through stores, arenas and programs, and the most that ever was. */
  readonly memory: { readonly allocatedBytes: number; readonly peakBytes: number };
  createStore(): Store;
  createArena(bytes: number): Arena;
  /** Checks and binds. The arena must hold `program.arenaBytes`; without one the executable owns its own. */
  load(program: Program, store: Store, arena?: Arena): Executable;
  dispose(): void;
}

/** What this build has and this machine offers. */
export interface Probe {
  readonly cudaBuilt: boolean;
  readonly cudaTargets: string;
  readonly cudaReason: string;
  readonly cudaDevices: readonly DeviceInfo[];
  readonly cpu: DeviceInfo;
}
