import { Q4Error } from '../../errors.js';
import { readSchema, stageNames, type Schema } from '../config/schemas.js';
import { didYouMean } from '../config/suggest.js';
import type { Command } from './command.js';

const OTHERS = ['pipeline', 'report', 'events', 'checkpoint-manifest'];

type Property = Readonly<Record<string, unknown>>;

function typeText(property: Property): string {
  const choices = property['enum'] as unknown[] | undefined;
  if (choices !== undefined) return choices.map(String).join(' | ');
  if ('const' in property) return String(property['const']);
  const { minimum, maximum, exclusiveMinimum, exclusiveMaximum } = property as Record<
    string,
    number | undefined
  >;
  const type = [property['type'] ?? 'any'].flat().join(' or ');
  const bounds = [
    minimum === undefined ? '' : `≥ ${minimum}`,
    exclusiveMinimum === undefined ? '' : `> ${exclusiveMinimum}`,
    maximum === undefined ? '' : `≤ ${maximum}`,
    exclusiveMaximum === undefined ? '' : `< ${exclusiveMaximum}`,
  ].filter((text) => text !== '');
  return [type, ...bounds].join(' ');
}

/** One row a key; maps below their parent. */
function rows(schema: Schema | Property, prefix: string): [string, string, string][] {
  const properties = (schema['properties'] ?? {}) as Record<string, Property>;
  const required = (schema['required'] ?? []) as string[];
  return Object.entries(properties).flatMap(([key, property]): [string, string, string][] => {
    const name = `${prefix}${key}`;
    const standard =
      'default' in property && typeof property['default'] !== 'object'
        ? `default ${JSON.stringify(property['default'])}`
        : required.includes(key)
          ? 'required'
          : '';
    const own: [string, string, string] = [
      name,
      [typeText(property), standard].filter((text) => text !== '').join(', '),
      String(property['description'] ?? ''),
    ];
    return [own, ...rows(property, `${name}.`)];
  });
}

export const schema: Command = ({ positionals, flags, terminal }) => {
  const { bold, dim } = terminal.colors;
  const [name] = positionals;
  const stages = stageNames();
  if (name === undefined) {
    terminal.out(`${[...OTHERS, ...stages].join('\n')}\n`);
    return Promise.resolve(0);
  }
  if (!OTHERS.includes(name) && !stages.includes(name)) {
    const all = [...OTHERS, ...stages];
    throw new Q4Error('Q4002', `there is no schema '${name}'`, {
      found: name,
      hint: didYouMean(name, all) ?? `there are ${all.join(', ')}`,
    });
  }
  const found = readSchema(stages.includes(name) ? `stages/${name}` : name);
  if (flags.json) {
    terminal.out(`${JSON.stringify(found, null, 2)}\n`);
    return Promise.resolve(0);
  }
  terminal.out(`${bold(found.title)}  ${found.description ?? ''}\n\n`);
  for (const [key, type, description] of rows(found, '')) {
    terminal.out(`${bold(key)}  ${dim(type)}\n    ${description}\n`);
  }
  return Promise.resolve(0);
};
