/**
 * Keeps the programs of one session: makes the store tensors that they need, lets them share one arena, and loads each
 * once. Programs of a host never run at the same time.
 */
import type { Arena, Engine, Executable, Store } from '../engine/types.js';
import { Q4Error } from '../errors.js';
import type { Lowered } from '../graph/lower.js';
import type { Purpose, StoreTensor } from '../graph/types.js';

/** What no two sessions on one store can share. */
const OWN: readonly Purpose[] = ['io', 'cache', 'taps'];

export class ProgramHost {
  #arena: Arena | null = null;
  readonly #lowered = new Map<string, Lowered>();
  readonly #loaded = new Map<string, Executable>();
  readonly #made = new Set<string>();

  constructor(
    private readonly engine: Engine,
    readonly store: Store,
  ) {}

  /** Takes an arena large enough for all of these at once, so that none is replaced later. */
  reserve(programs: readonly Lowered[]): void {
    this.#grow(Math.max(0, ...programs.map(({ program }) => program.arenaBytes)));
  }

  /** The program called `key`, made by `build` when it is first asked for. */
  get(key: string, build: () => Lowered): { run: Executable; lowered: Lowered } {
    const lowered = this.#lowered.get(key) ?? build();
    this.#lowered.set(key, lowered);
    const known = this.#loaded.get(key);
    if (known) return { run: known, lowered };
    this.#grow(lowered.program.arenaBytes);
    for (const tensor of lowered.tensors) {
      const { name, dtype, shape } = tensor;
      if (this.store.has(name)) {
        this.#checkShared(tensor);
        continue;
      }
      this.store.allocate(name, dtype, shape);
      this.#made.add(name);
    }
    const run = this.engine.load(lowered.program, this.store, this.#arena!);
    this.#loaded.set(key, run);
    return { run, lowered };
  }

  /** Lets go of the programs, the arena and the tensors that this host made. */
  dispose(): void {
    this.#unload();
    this.#arena?.dispose();
    this.#arena = null;
    this.#lowered.clear();
    for (const name of this.#made) if (this.store.has(name)) this.store.free(name);
    this.#made.clear();
  }

  /** Weights and masters belong to the model; a cache or an input of another host that is still open does not. */
  #checkShared({ name, purpose }: StoreTensor): void {
    if (this.#made.has(name) || !OWN.includes(purpose)) return;
    throw new Q4Error('Q4900', `another session of this model uses ${name}: dispose it first`);
  }

  #unload(): void {
    for (const executable of this.#loaded.values()) executable.dispose();
    this.#loaded.clear();
  }

  /** A larger arena replaces the old one; programs bound to that are loaded again when they are next used. */
  #grow(bytes: number): void {
    if (this.#arena && this.#arena.bytes >= bytes) return;
    this.#unload();
    this.#arena?.dispose();
    this.#arena = this.engine.createArena(Math.max(bytes, 256));
  }
}

/** Runs a program once. Tensors of the model that it needs are made and stay; its inputs and outputs go again. */
export async function runOnce(engine: Engine, store: Store, lowered: Lowered): Promise<void> {
  const passing: string[] = [];
  for (const { name, dtype, shape, purpose } of lowered.tensors) {
    if (store.has(name)) continue;
    store.allocate(name, dtype, shape);
    if (purpose === 'io' || purpose === 'taps') passing.push(name);
  }
  const executable = engine.load(lowered.program, store);
  try {
    await executable.run();
  } finally {
    executable.dispose();
    for (const name of passing) store.free(name);
  }
}
