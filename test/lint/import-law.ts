/** The import law of the architecture, as a function of the sources, so that it can be tested on broken examples. */
import { posix } from 'node:path';

export interface Source {
  /** Relative to the repository's root, with forward slashes. */
  readonly path: string;
  readonly text: string;
}

interface Room {
  /** Path prefix of the files it holds. */
  readonly room: string;
  /** Prefixes of our own files that they may import, beside their own room. */
  readonly mayUse: readonly string[];
  /** Rooms of effects may use Node's modules and globals; the others are pure. */
  readonly pure?: boolean;
}

/** First match wins. `runtime/program.ts` and the error files may be imported everywhere. */
const ROOMS: readonly Room[] = [
  {
    room: 'runtime/runner/',
    mayUse: ['schemas/', 'stages/index.ts', 'runtime/engine/engine.ts', 'package.json'],
  },
  {
    room: 'stages/',
    mayUse: [
      'runtime/sessions/',
      'runtime/models/',
      'runtime/graph/',
      'runtime/text/',
      'runtime/engine/types.ts',
    ],
    pure: true,
  },
  {
    room: 'runtime/sessions/',
    mayUse: ['runtime/models/', 'runtime/graph/', 'runtime/text/', 'runtime/engine/types.ts'],
    pure: true,
  },
  { room: 'runtime/graph/', mayUse: ['runtime/models/'], pure: true },
  { room: 'runtime/models/', mayUse: ['runtime/graph/'], pure: true },
  { room: 'runtime/text/', mayUse: [] },
  { room: 'runtime/engine/', mayUse: [] },
];
const EVERYWHERE = ['runtime/program.ts', 'runtime/errors.ts', 'runtime/error-codes.ts'];

/** What a pure room must not touch: everything with an effect comes through the stage's context. */
const EFFECTS: readonly [RegExp, string][] = [
  [/\bprocess\.\w/, 'process'],
  [/\bDate\.now\b|\bnew Date\b|\bperformance\.now\b/, 'a clock'],
  [/\bMath\.random\b/, 'Math.random'],
  [/\bset(?:Timeout|Interval|Immediate)\b/, 'a timer'],
  [/\bconsole\.\w/, 'console'],
  [/\bfetch\(/, 'fetch'],
];

const IMPORTS =
  /^\s*(?:import|export)\s[^;'"]*?\bfrom\s*'([^']+)'|\bimport\s*\(\s*'([^']+)'\s*\)|^\s*import\s+'([^']+)'/gm;

const withoutComments = (text: string): string =>
  text.replace(/\/\*[\s\S]*?\*\//g, '').replace(/(^|\s)\/\/[^\n]*/g, '$1');

export const importsOf = (source: Source): string[] =>
  [...withoutComments(source.text).matchAll(IMPORTS)].map(([, a, b, c]) => (a ?? b ?? c)!);

const packageName = (specifier: string): string =>
  specifier
    .split('/')
    .slice(0, specifier.startsWith('@') ? 2 : 1)
    .join('/');

const resolve = (path: string, specifier: string): string =>
  posix.join(posix.dirname(path), specifier).replace(/\.js$/, '.ts');

function roomViolations(source: Source, room: Room): string[] {
  const found: string[] = [];
  for (const specifier of importsOf(source)) {
    if (specifier.startsWith('.')) {
      const target = resolve(source.path, specifier);
      const own = target.startsWith(room.room);
      const allowed =
        own || EVERYWHERE.includes(target) || room.mayUse.some((prefix) => target.startsWith(prefix));
      if (!allowed) found.push(`${source.path} imports ${target}`);
    } else if (room.pure === true) {
      found.push(`${source.path} imports ${specifier}`);
    }
  }
  if (room.pure === true) {
    const code = withoutComments(source.text);
    for (const [pattern, name] of EFFECTS) if (pattern.test(code)) found.push(`${source.path} uses ${name}`);
  }
  return found;
}

/** A stage never imports another stage: they hand values on through the runner. A stage says what it `uses`. */
function stageViolations(sources: readonly Source[]): string[] {
  const all = sources.filter(
    (source) => /^stages\/[^/]+\.ts$/.test(source.path) && source.path !== 'stages/index.ts',
  );
  const stages = new Set(all.filter((source) => /\buses: '/.test(source.text)).map((source) => source.path));
  return all.flatMap((source) =>
    importsOf(source)
      .filter((specifier) => specifier.startsWith('.'))
      .map((specifier) => resolve(source.path, specifier))
      .filter((target) => stages.has(target))
      .map((target) => `${source.path} imports the stage ${target}`),
  );
}

function packageViolations(sources: readonly Source[]): string[] {
  const users = new Map<string, Set<string>>();
  for (const source of sources)
    for (const specifier of importsOf(source)) {
      if (specifier.startsWith('.') || specifier.startsWith('node:')) continue;
      const name = packageName(specifier);
      users.set(name, (users.get(name) ?? new Set()).add(source.path));
    }
  return [...users]
    .filter(([, files]) => files.size > 1)
    .map(([name, files]) => `${name} is imported in ${[...files].join(' and ')}`);
}

function addonViolations(sources: readonly Source[]): string[] {
  const users = sources.filter((source) => /\.node['"`]|\bdlopen\b/.test(withoutComments(source.text)));
  const found = users
    .filter((source) => !source.path.startsWith('runtime/engine/'))
    .map((source) => `${source.path} names a .node file`);
  if (users.length > 1)
    found.push(`the addon is loaded in ${users.map((source) => source.path).join(' and ')}`);
  return found;
}

/** What each native room may not include. */
const NATIVE: readonly [string, RegExp][] = [
  ['native/core/', /napi\.h|node_api\.h|"(?:cpu|cuda|binding)\/|cuda_runtime|cuda_bf16/],
  ['native/cpu/', /napi\.h|node_api\.h|"(?:cuda|binding)\/|cuda_runtime|cuda_bf16/],
  ['native/cuda/', /napi\.h|node_api\.h|"(?:cpu|binding)\//],
  ['native/binding/', /"(?:cpu|cuda)\/|cuda_runtime|cuda_bf16/],
];

function nativeViolations(source: Source): string[] {
  const rule = NATIVE.find(([prefix]) => source.path.startsWith(prefix));
  if (rule === undefined) return [];
  return source.text
    .split('\n')
    .filter((line) => /^\s*#\s*include/.test(line) && rule[1].test(line))
    .map((line) => `${source.path}: ${line.trim()}`);
}

/** Every violation in these sources (TypeScript of runtime/ and stages/, C++ and CUDA of native/). */
export function violations(sources: readonly Source[]): string[] {
  const scripts = sources.filter((source) => source.path.endsWith('.ts'));
  const found: string[] = [];
  for (const source of scripts) {
    const room = ROOMS.find((candidate) => source.path.startsWith(candidate.room));
    if (room !== undefined) found.push(...roomViolations(source, room));
    else if (!EVERYWHERE.includes(source.path)) found.push(`${source.path} stands in no room`);
  }
  found.push(...stageViolations(scripts), ...packageViolations(scripts), ...addonViolations(scripts));
  for (const source of sources) found.push(...nativeViolations(source));
  return found;
}
