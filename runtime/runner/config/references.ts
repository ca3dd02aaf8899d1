/** `${vars.x}`, `${env.NAME}`, `${env.NAME:-default}` and `${stages.ID.outputs.NAME}` in values. */
import { Q4Error } from '../../errors.js';
import { didYouMean } from './suggest.js';
import {
  mapScalars,
  placeOf,
  type ConfigNode,
  type MapNode,
  type Path,
  type Plain,
  type ScalarNode,
} from './tree.js';

const REFERENCE = /\$\$\{|\$\{([^{}]*)\}/g;
const LATE = /^stages\.([^.\s]+)\.outputs\.([^\s]+)$/;

export interface LateReference {
  readonly stage: string;
  /** Output name, then keys and indices into it. */
  readonly output: readonly string[];
  readonly node: ScalarNode;
  readonly path: Path;
}

export interface Resolved {
  readonly root: MapNode;
  readonly late: readonly LateReference[];
  readonly errors: readonly Q4Error[];
}

export function resolveReferences(root: MapNode, env: NodeJS.ProcessEnv): Resolved {
  const resolver = new Resolver(root, env);
  const resolved = mapScalars(root, (node, path) => resolver.scalar(node, path, [])) as MapNode;
  return { root: resolved, late: resolver.late, errors: resolver.errors };
}

class Resolver {
  readonly late: LateReference[] = [];
  readonly errors: Q4Error[] = [];
  private readonly vars: MapNode | undefined;

  constructor(
    root: MapNode,
    private readonly env: NodeJS.ProcessEnv,
  ) {
    const vars = root.entries.get('vars')?.node;
    this.vars = vars?.kind === 'map' ? vars : undefined;
  }

  scalar(node: ScalarNode, path: Path, inside: readonly string[]): ConfigNode {
    if (typeof node.value !== 'string' || !node.value.includes('${')) return node;
    const text = node.value;
    const whole = /^\$\{([^{}]*)\}$/.exec(text);
    if (whole !== null) return this.reference(whole[1]!.trim(), node, path, inside);
    let base = node.base;
    let late = false;
    const value = text.replace(REFERENCE, (match, name: string | undefined, offset: number) => {
      if (name === undefined) return late || LATE.test(text) ? match : '${';
      const part = this.reference(name.trim(), node, path, inside);
      if (part.kind !== 'scalar') {
        this.fail(`\${${name}} is a ${part.kind}, which cannot stand inside a text`, node);
        return match;
      }
      if (part.late === true) late = true;
      // A path that begins with a variable belongs to the file in which the variable stands.
      else if (offset === 0) base = part.base;
      return String(part.value);
    });
    return { ...node, value, base, ...(late ? { late } : {}) };
  }

  private reference(name: string, node: ScalarNode, path: Path, inside: readonly string[]): ConfigNode {
    if (name.startsWith('vars.')) return this.variable(name.slice('vars.'.length), node, path, inside);
    if (name.startsWith('env.')) return this.environment(name.slice('env.'.length), node);
    const late = LATE.exec(name);
    if (late !== null) {
      this.late.push({ stage: late[1]!, output: late[2]!.split('.'), node, path });
      return { ...node, value: `\${${name}}`, late: true };
    }
    const hint =
      'write ${vars.NAME}, ${env.NAME}, ${env.NAME:-default} or ${stages.ID.outputs.NAME}; $${ is a literal ${';
    return this.fail(`\${${name}} is not a reference`, node, hint);
  }

  private variable(name: string, node: ScalarNode, path: Path, inside: readonly string[]): ConfigNode {
    const known = this.vars === undefined ? [] : [...this.vars.entries.keys()];
    const entry = this.vars?.entries.get(name);
    if (entry === undefined) {
      const hint =
        didYouMean(name, known) ?? (known.length > 0 ? `vars has ${known.join(', ')}` : 'there are no vars');
      return this.fail(`there is no variable '${name}'`, node, hint);
    }
    if (inside.includes(name)) {
      return this.fail(`the variable '${name}' refers to itself: ${[...inside, name].join(' → ')}`, node);
    }
    const value = mapScalars(entry.node, (scalar) => this.scalar(scalar, path, [...inside, name]));
    // An error about the value is told where the variable is used, but a path belongs to where it was written.
    return value.kind === 'scalar' ? { ...value, origin: node.origin } : value;
  }

  private environment(reference: string, node: ScalarNode): ConfigNode {
    const match = /^([A-Za-z_][A-Za-z0-9_]*)(?::-([\s\S]*))?$/.exec(reference);
    if (match === null)
      return this.fail(`\${env.${reference}} is not a name of an environment variable`, node);
    const [, name, fallback] = match;
    const value = this.env[name!];
    // As in a shell, `:-` also stands in for an empty value.
    if (value !== undefined && (value !== '' || fallback === undefined)) {
      return { ...node, value, base: process.cwd(), untyped: true };
    }
    if (fallback !== undefined) return { ...node, value: fallback, untyped: true };
    const hint = `set it, or give a default: \${env.${name}:-value}`;
    return this.fail(`the environment variable ${name} is not set`, node, hint);
  }

  private fail(message: string, node: ScalarNode, hint?: string): ScalarNode {
    const place = placeOf(node.origin);
    this.errors.push(new Q4Error('Q4110', message, hint === undefined ? place : { ...place, hint }));
    return { ...node, value: '', late: true };
  }
}

/** The value of a text with ${stages.…} once outputs are known; a text that is one reference takes the output's type. */
export function resolveLate(
  text: string,
  outputs: (stage: string, output: readonly string[]) => Plain,
): Plain {
  const read = (name: string): Plain | undefined => {
    const late = LATE.exec(name.trim());
    return late === null ? undefined : outputs(late[1]!, late[2]!.split('.'));
  };
  const whole = /^\$\{([^{}]*)\}$/.exec(text);
  if (whole !== null) return read(whole[1]!) ?? text;
  return text.replace(REFERENCE, (match, name: string | undefined) => {
    if (name === undefined) return '${';
    const value = read(name);
    if (value === undefined) return match;
    return typeof value === 'object' ? JSON.stringify(value) : String(value);
  });
}
