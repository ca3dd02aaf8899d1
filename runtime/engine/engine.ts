/** Opens devices: the typed door to native code. See types.ts for the contract. */
import { availableParallelism } from 'node:os';
import { Q4Error, toQ4Error } from '../errors.js';
import type { DType, Program } from '../program.js';
import { addon, type Handle } from './addon.js';
import { nativeFiles } from './files.js';
import type {
  Arena,
  DecodeOptions,
  DecodeResult,
  DeviceInfo,
  Engine,
  EngineOptions,
  Executable,
  NumericArray,
  Probe,
  RunOptions,
  RunResult,
  Store,
  TensorInfo,
  TensorPart,
} from './types.js';

export type * from './types.js';

/** Runs a native call and turns what it throws into a Q4Error. */
function native<T>(call: () => T): T {
  try {
    return call();
  } catch (error) {
    throw toQ4Error(error);
  }
}

/** A native cancel flag that follows an AbortSignal for the time of one call. */
async function cancellable<T>(
  signal: AbortSignal | undefined,
  call: (flag: Handle) => Promise<T>,
): Promise<T> {
  const flag = addon().createCancel();
  const cancel = (): void => addon().cancel(flag);
  if (signal?.aborted) cancel();
  signal?.addEventListener('abort', cancel, { once: true });
  try {
    return await call(flag);
  } catch (error) {
    throw toQ4Error(error);
  } finally {
    signal?.removeEventListener('abort', cancel);
    addon().dispose(flag);
  }
}

export class NativeStore implements Store {
  constructor(readonly handle: Handle) {}

  allocate(name: string, dtype: DType, shape: readonly number[]): void {
    native(() => addon().storeAllocate(this.handle, name, dtype, shape));
  }
  has(name: string): boolean {
    return native(() => addon().storeHas(this.handle, name));
  }
  info(name: string): TensorInfo {
    return native(() => addon().storeInfo(this.handle, name)) as TensorInfo;
  }
  list(): TensorInfo[] {
    return native(() => addon().storeNames(this.handle)).map((name) => this.info(name));
  }
  get bytes(): number {
    return native(() => addon().storeBytes(this.handle));
  }
  read(name: string, part: TensorPart = 'data'): NumericArray {
    return native(() => addon().storeRead(this.handle, name, part));
  }
  write(name: string, data: NumericArray, part: TensorPart = 'data'): void {
    native(() => addon().storeWrite(this.handle, name, part, data));
  }
  free(name: string): void {
    native(() => addon().storeFree(this.handle, name));
  }
  rename(from: string, to: string): void {
    native(() => addon().storeRename(this.handle, from, to));
  }
  dispose(): void {
    addon().dispose(this.handle);
  }
}

class NativeArena implements Arena {
  constructor(
    readonly handle: Handle,
    readonly bytes: number,
  ) {}
  dispose(): void {
    addon().dispose(this.handle);
  }
}

class NativeExecutable implements Executable {
  constructor(
    private readonly handle: Handle,
    readonly program: Program,
    private readonly store: NativeStore,
  ) {}

  async run(options: RunOptions = {}): Promise<RunResult> {
    const started = performance.now();
    const profile = options.profile ?? false;
    const times = await cancellable(options.signal, (flag) =>
      addon().executableRun(this.handle, flag, profile),
    );
    const seconds = (performance.now() - started) / 1000;
    if (!times) return { seconds };
    const ops = this.program.ops.map(({ op, scope, phase }, index) => {
      return { index, op, scope, phase, seconds: times[index] ?? 0 };
    });
    return { seconds, ops };
  }

  async decode(options: DecodeOptions): Promise<DecodeResult> {
    const rows = native(() => this.store.info(options.tokens)).shape.reduce((a, b) => a * b, 1);
    const tokens: number[][] = Array.from({ length: rows }, () => []);
    const finish: ('stop' | 'length' | 'cancelled' | undefined)[] = Array.from({ length: rows });
    const stops = new Set(options.stopTokens);
    // The native loop runs a few steps ahead of this callback, so rows are cut here, where the decision is made.
    let thrown: { error: unknown } | undefined;
    const sees = (row: number, token: number): boolean => {
      try {
        return options.onToken?.(row, token) === true;
      } catch (error) {
        // Told once, after the loop has ended; no callback follows it.
        thrown = { error };
        finish.fill('cancelled');
        return true;
      }
    };
    const onStep = (step: Int32Array): number[] | undefined => {
      const ended: number[] = [];
      step.forEach((token, row) => {
        if (finish[row]) return;
        tokens[row]?.push(token);
        if (!sees(row, token) && !stops.has(token)) return;
        finish[row] ??= 'stop';
        ended.push(row);
      });
      return thrown ? finish.map((_, row) => row) : ended.length > 0 ? ended : undefined;
    };
    const started = performance.now();
    const { steps, cancelled } = await cancellable(options.signal, (flag) =>
      addon().executableDecode(
        this.handle,
        options.tokens,
        options.maxTokens,
        options.stopTokens,
        flag,
        onStep,
      ),
    );
    if (thrown) throw thrown.error;
    const open = cancelled ? 'cancelled' : 'length';
    return {
      tokens,
      finish: finish.map((f) => f ?? open),
      seconds: (performance.now() - started) / 1000,
      steps,
    };
  }

  dispose(): void {
    addon().dispose(this.handle);
  }
}

class NativeEngine implements Engine {
  readonly files = nativeFiles;
  constructor(private readonly handle: Handle) {}

  get device(): DeviceInfo {
    return native(() => addon().deviceInfo(this.handle));
  }
  get memory(): { allocatedBytes: number; peakBytes: number } {
    const { allocatedBytes, peakBytes } = native(() => addon().deviceInfo(this.handle));
    return { allocatedBytes, peakBytes };
  }
  createStore(): Store {
    return new NativeStore(native(() => addon().createStore(this.handle)));
  }
  createArena(bytes: number): Arena {
    return new NativeArena(
      native(() => addon().createArena(this.handle, bytes)),
      bytes,
    );
  }
  load(program: Program, store: Store, arena?: Arena): Executable {
    if (!(store instanceof NativeStore)) throw new Q4Error('Q4900', 'the store belongs to no engine');
    const arenaHandle = arena instanceof NativeArena ? arena.handle : null;
    return new NativeExecutable(
      native(() => addon().loadProgram(store.handle, program, arenaHandle)),
      program,
      store,
    );
  }
  dispose(): void {
    addon().dispose(this.handle);
  }
}

/** Opens a device. Q4402 when CUDA is asked for and not usable, Q4404 when the addon does not load. */
export function openEngine(options: EngineOptions): Engine {
  const { device, index = 0, threads = 0, reference = false } = options;
  return new NativeEngine(native(() => addon().openDevice(device, index, threads, reference)));
}

/** What this build has and this machine offers; never throws for a missing GPU. */
export function probe(): Probe {
  const cuda = native(() => addon().probe());
  const cpu = openEngine({ device: 'cpu', threads: availableParallelism() });
  try {
    return { ...cuda, cpu: cpu.device };
  } finally {
    cpu.dispose();
  }
}
