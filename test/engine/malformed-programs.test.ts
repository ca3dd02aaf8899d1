/**
 * Programs are checked once, when they are loaded: whatever is wrong with one is an error with a code, never a crash.
 * Random mutations of real programs; one that still loads must also run without harm.
 */
import { test } from 'uvu';
import * as assert from 'uvu/assert';

import { openEngine, type Store } from '../../runtime/engine/engine.js';
import { Q4Error } from '../../runtime/errors.js';
import type { Lowered } from '../../runtime/graph/lower.js';
import { decodeProgram } from '../../runtime/models/decode-program.js';
import { forwardProgram } from '../../runtime/models/forward-program.js';
import { initProgram } from '../../runtime/models/init-program.js';
import { modelTensors } from '../../runtime/models/model.js';
import { countChangedProgram, dequantizeProgram } from '../../runtime/models/quantise-programs.js';
import { trainProgram } from '../../runtime/models/train-program.js';
import { updateProgram } from '../../runtime/models/update-program.js';
import type { Program } from '../../runtime/program.js';
import { tinyModel } from '../models/tiny-model.js';
import { uniformSource } from '../native/random-values.js';
import { counter } from './programs.js';

const engines = [false, true].map((reference) => openEngine({ device: 'cpu', threads: 2, reference }));
const model = tinyModel();
const common = { model, device: 'cpu', activation: 'f32' } as const;
const cache = { rows: 2, capacity: 8 };
const PROGRAMS: readonly Lowered[] = [
  forwardProgram({ ...common, batch: 2, tokens: 3 }),
  forwardProgram({ ...common, batch: 1, tokens: 3, cache: { ...cache, row: 1 }, prefix: 'c/' }),
  decodeProgram({ ...common, batch: 2, cache, prefix: 'd/' }),
  trainProgram({ ...common, batch: 2, tokens: 4, loss: 'cross_entropy', recompute: 'none', accumulate: false, prefix: 't/' }), // prettier-ignore
  trainProgram({
    ...common,
    batch: 2,
    tokens: 4,
    loss: 'scalar',
    recompute: 'block',
    accumulate: true,
    prefix: 't/',
  }),
  updateProgram({ model, device: 'cpu', maxGradNorm: 1, loss: 'cross_entropy', decays: () => true }),
  initProgram({ model, device: 'cpu', seed: 3, std: 0.1 }),
  dequantizeProgram({ model, device: 'cpu' }),
  countChangedProgram({ model, device: 'cpu', against: 'initial.' }),
];

function storeFor(engine: (typeof engines)[number]): Store {
  const store = engine.createStore();
  for (const { name, dtype, shape } of [
    ...modelTensors(model),
    ...PROGRAMS.flatMap(({ tensors }) => tensors),
  ])
    if (!store.has(name)) store.allocate(name, dtype, shape);
  return store;
}

type Json = null | boolean | number | string | Json[] | { [key: string]: Json };
const uniform = uniformSource(4242);
const below = (n: number): number => Math.floor(uniform() * n);
const pick = <T>(list: readonly T[]): T => list[below(list.length)]!;

/** Every place in the program, as [container, key]. */
function places(value: Json, found: [Json[] | Record<string, Json>, string | number][] = []) {
  if (value === null || typeof value !== 'object') return found;
  for (const key of Object.keys(value)) {
    const at = Array.isArray(value) ? Number(key) : key;
    found.push([value, at]);
    places((value as Record<string, Json>)[key]!, found);
  }
  return found;
}

const NUMBERS = [0, 1, -1, 2, 3, 7, 16, 255, 256, 257, 4096, 2 ** 31 - 1, 2 ** 31, 2 ** 32, 2 ** 32 + 1, 2 ** 53 - 1, 2 ** 53, 1e15, 1e300, 0.5, -0.5, -(2 ** 40), Number.NaN, Infinity]; // prettier-ignore
const WORDS = ['', 'arena', 'store', 'f32', 'bf16', 'f16', 'i32', 'u8', 'nvfp4', 'linear', 'embedding', 'rms_norm', 'attention', 'swiglu', 'add', 'increment', 'sample', 'gather_rows', 'amax', 'fill', 'cast', 'adamw', 'kv_append', 'quantize_nvfp4', 'count_changed', 'hyper', 'stats', 'changed', '__proto__', 'no such thing', 'x'.repeat(5000)]; // prettier-ignore

function otherValue(old: Json): Json {
  const kind = below(10);
  if (typeof old === 'number' && kind < 8)
    return kind < 2 ? old + pick([-1, 1, 256, -256, 16]) : pick(NUMBERS);
  if (typeof old === 'string' && kind < 8) return pick(WORDS);
  return pick<Json>([null, true, 3, 'text', [], {}, [1, 2], { kind: 'arena', offset: 0 }]);
}

/** One to three mutations: another value, a missing one, one more, two that change places. */
function mutate(program: Program): Program {
  const copy = structuredClone(program) as unknown as Json;
  for (let n = 1 + below(3); n > 0; n--) {
    const all = places(copy);
    if (all.length === 0) break;
    const [container, key] = pick(all);
    const holder = container as Record<string | number, Json>;
    const action = below(12);
    if (action === 0 && Array.isArray(container)) container.splice(Number(key), 1);
    else if (action === 0) delete holder[key];
    else if (action === 1 && Array.isArray(container))
      container.splice(Number(key), 0, structuredClone(pick(container)));
    else if (action === 2 && Array.isArray(container)) {
      const other = below(container.length);
      [container[Number(key)], container[other]] = [container[other]!, container[Number(key)]!];
    } else holder[key] = otherValue(holder[key]!);
  }
  return copy as unknown as Program;
}

const ROUNDS = Number(process.env['Q4RUN_FUZZ_ROUNDS'] ?? 4000);
const REFUSALS = new Set(['Q4510', 'Q4511', 'Q4514', 'Q4401']);
/** What an op may say when it meets its data: ids beyond a table, a dtype that the CPU does not compute with. */
const AT_RUN = new Set(['Q4510', 'Q4512']);

for (const [index, engine] of engines.entries())
  test(`${ROUNDS} mutated programs are refused or run (${index === 0 ? 'fast' : 'reference'})`, async () => {
    const store = storeFor(engine);
    const counts = new Map<string, number>();
    let ran = 0;
    for (let round = 0; round < ROUNDS; round++) {
      const program = mutate(pick(PROGRAMS).program);
      const told = (thrown: unknown, codes: Set<string>): void => {
        assert.instance(thrown, Q4Error, String(thrown));
        const { code, message } = thrown as Q4Error;
        counts.set(code, (counts.get(code) ?? 0) + 1);
        assert.ok(codes.has(code), `${code} ${message}: ${JSON.stringify(program).slice(0, 2000)}`);
      };
      let run;
      try {
        run = engine.load(program, store);
      } catch (thrown) {
        told(thrown, REFUSALS);
        continue;
      }
      try {
        await run.run();
        ran++;
      } catch (thrown) {
        told(thrown, AT_RUN);
      } finally {
        run.dispose();
      }
    }
    assert.ok(ran > ROUNDS / 200, `only ${ran} ran`);
    assert.ok((counts.get('Q4510') ?? 0) > ROUNDS / 5 && (counts.get('Q4514') ?? 0) > ROUNDS / 50);
    store.dispose();
  });

test('the unmutated programs load and run', async () => {
  for (const engine of engines) {
    const store = storeFor(engine);
    for (const { program } of PROGRAMS) {
      const run = engine.load(program, store);
      await run.run();
      run.dispose();
    }
    store.dispose();
  }
});

test('no programs at all', () => {
  const [engine] = engines;
  const store = engine!.createStore();
  store.allocate('ids', 'i32', [1]);
  const good = counter(1);
  const bad: unknown[] = [
    null,
    undefined,
    7,
    'program',
    [],
    {},
    { ...good, version: 2 },
    { ...good, tensors: null },
    { ...good, ops: [null] },
    { ...good, arenaBytes: -1 },
    { ...good, arenaBytes: 2 ** 60 },
    { ...good, ops: [{ ...good.ops[0]!, outputs: [2 ** 32] }] },
    { ...good, ops: [{ ...good.ops[0]!, outputs: [] }] },
    { ...good, ops: [{ ...good.ops[0]!, attrs: { by: 1 } }] },
    { ...good, ops: [{ ...good.ops[0]!, attrs: { by: 1, max: 2 ** 40 } }] },
    { ...good, ops: [{ ...good.ops[0]!, attrs: { by: 1, max: 5, more: 1 } }] },
  ];
  for (const program of bad)
    try {
      engine!.load(program as Program, store);
      assert.unreachable(`was accepted: ${JSON.stringify(program)}`);
    } catch (thrown) {
      assert.instance(thrown, Q4Error, String(thrown));
      assert.ok(
        REFUSALS.has((thrown as Q4Error).code),
        `${(thrown as Q4Error).code} ${(thrown as Error).message}`,
      );
    }
  store.dispose();
});

test.after(() => engines.forEach((engine) => engine.dispose()));
test.run();
