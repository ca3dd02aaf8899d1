/** What the schema objects to → sentences with a place, what was expected, what was found and what to do. */
import { Q4Error, type ErrorCode, type ErrorDetails } from '../../errors.js';
import { didYouMean } from './suggest.js';
import { keyOriginAt, nodeAt, originAt, placeOf, type ConfigNode, type Path } from './tree.js';
import type { SchemaError } from './validator.js';
import { parseValue } from './yaml-text.js';

/** 'schedule.kind' of stage 'train' / 'runtime.device' / the pipeline. */
export function subject(path: Path, root: ConfigNode): { key: string; owner: string } {
  if (path[0] === 'stages' && typeof path[1] === 'number') {
    const id = nodeAt(root, ['stages', path[1], 'id']);
    const name =
      id?.kind === 'scalar' && typeof id.value === 'string' ? `'${id.value}'` : `number ${path[1] + 1}`;
    const rest = path[2] === 'with' ? path.slice(3) : path.slice(2);
    return { key: spell(rest), owner: `stage ${name}` };
  }
  return { key: spell(path), owner: 'the pipeline' };
}

const spell = (path: Path): string =>
  path.map((key, i) => (typeof key === 'number' ? `[${key}]` : i === 0 ? key : `.${key}`)).join('');

/** A value as a person would say it. */
export function show(value: unknown): string {
  if (typeof value === 'string') return value.length > 60 ? `"${value.slice(0, 57)}…"` : `"${value}"`;
  if (value === null || value === undefined) return 'nothing';
  if (Array.isArray(value)) return `a list of ${value.length}`;
  if (typeof value === 'object') return 'a map';
  return String(value);
}

const TYPE_NAMES: Readonly<Record<string, string>> = {
  integer: 'a whole number',
  number: 'a number',
  string: 'text',
  boolean: 'true or false',
  array: 'a list',
  object: 'a map',
  null: 'nothing',
};

const orList = (words: readonly string[]): string =>
  words.length < 2 ? (words[0] ?? '') : `${words.slice(0, -1).join(', ')} or ${words[words.length - 1]}`;

interface Told {
  readonly code: ErrorCode;
  readonly message: string;
  readonly details?: ErrorDetails;
  /** Where it stands, if not at the value. */
  readonly at?: 'key';
  readonly path?: Path;
}

/** Only when the key is all there is at the top: the path's text, else 'the pipeline' or "stage 'x'". */
const named = (path: Path, root: ConfigNode): string => {
  const { key, owner } = subject(path, root);
  if (key === '') return owner;
  return owner === 'the pipeline' ? `'${key}'` : `'${key}' of ${owner}`;
};

function typeHint(error: SchemaError, wanted: readonly string[]): string | undefined {
  const { data } = error;
  if (typeof data !== 'string') {
    if (wanted.includes('string')) return 'put it in quotes';
    if (wanted.includes('array') && !Array.isArray(data)) return 'write it as a list: [ … ]';
    return undefined;
  }
  const digits = data.replaceAll('_', '');
  if (wanted.includes('boolean') && /^(yes|on|y)$/i.test(data))
    return 'YAML 1.2 reads this as text; write true';
  if (wanted.includes('boolean') && /^(no|off|n)$/i.test(data))
    return 'YAML 1.2 reads this as text; write false';
  if (digits !== data && typeof parseValue(digits) === 'number')
    return `YAML 1.2 reads this as text; write ${digits}`;
  const value = parseValue(data);
  if (typeof value === 'number' || typeof value === 'boolean') return 'remove the quotes';
  return wanted.includes('array') ? 'write it as a list: [ … ]' : undefined;
}

function typeError(error: SchemaError, root: ConfigNode): Told {
  const wanted = [error.params['type']].flat() as string[];
  const expected = orList(wanted.map((type) => TYPE_NAMES[type] ?? type));
  const found = typeof error.data === 'string' ? `the text ${show(error.data)}` : show(error.data);
  const hint = typeHint(error, wanted);
  return {
    code: 'Q4104',
    message: `${named(error.path, root)} must be ${expected}, found ${found}`,
    details: { expected, found, ...(hint === undefined ? {} : { hint }) },
  };
}

function unknownKey(error: SchemaError, root: ConfigNode): Told {
  const key = String(error.params['additionalProperty']);
  const known = Object.keys(error.parentSchema.properties ?? {});
  const aliases = (error.parentSchema['x-aliases'] ?? {}) as Record<string, string>;
  const alias = aliases[key.toLowerCase()];
  const hint =
    alias === undefined
      ? (didYouMean(key, known) ?? `known keys: ${known.join(', ')}`)
      : `here it is called '${alias}'`;
  const { key: where, owner } = subject(error.path, root);
  const inside = where === '' ? owner : owner === 'the pipeline' ? `'${where}'` : `'${where}' of ${owner}`;
  return {
    code: 'Q4103',
    message: `unknown key '${key}' in ${inside}`,
    details: { found: key, expected: `one of ${known.join(', ')}`, hint },
    at: 'key',
    path: [...error.path, key],
  };
}

function missingKey(error: SchemaError, root: ConfigNode): Told {
  const key = String(error.params['missingProperty']);
  const property = error.parentSchema.properties?.[key];
  const description = String(property?.['description'] ?? '').split(/(?<=\.)\s/)[0]!;
  const { key: where, owner } = subject(error.path, root);
  const inside = where === '' ? owner : owner === 'the pipeline' ? `'${where}'` : `'${where}' of ${owner}`;
  const details = description === '' ? { expected: key } : { expected: key, hint: `${key}: ${description}` };
  return { code: 'Q4107', message: `${inside} lacks the key '${key}'`, details };
}

function choice(error: SchemaError, root: ConfigNode): Told {
  const allowed = (
    error.keyword === 'const' ? [error.params['allowedValue']] : error.params['allowedValues']
  ) as unknown[];
  const words = allowed.map(String);
  const suggestion = typeof error.data === 'string' ? didYouMean(error.data, words) : undefined;
  if (error.path.length === 1 && error.path[0] === 'version') {
    return {
      code: 'Q4115',
      message: `version ${show(error.data)} of the pipeline format is not supported`,
      details: { expected: 'version: 1', found: show(error.data), hint: 'this q4run reads version: 1' },
    };
  }
  return {
    code: 'Q4106',
    message: `${named(error.path, root)} is ${show(error.data)}, which is not one of ${words.join(', ')}`,
    details: { expected: words.join(', '), found: show(error.data), ...(suggestion && { hint: suggestion }) },
  };
}

/** `oneOf: [{required: [a]}, {required: [b]}]`: exactly one of the keys. */
function exactlyOne(error: SchemaError, root: ConfigNode): Told | undefined {
  const branches = error.schema as { required?: string[] }[];
  const keys = branches.flatMap((branch) => branch.required ?? []);
  if (keys.length !== branches.length) return undefined;
  const given = keys.filter((key) => Object.hasOwn(error.data as object, key));
  const expected = `exactly one of ${orList(keys)}`;
  const message =
    given.length === 0
      ? `${named(error.path, root)} needs ${orList(keys.map((key) => `'${key}'`))}`
      : `${given.map((key) => `'${key}'`).join(' and ')} of ${named(error.path, root)} exclude each other`;
  const hint = given.length === 0 ? `give ${expected}` : 'keep one of them';
  const at = given[1];
  const where = at === undefined ? {} : { at: 'key' as const, path: [...error.path, at] };
  return { code: 'Q4108', message, details: { expected, found: given.join(', ') || 'none', hint }, ...where };
}

const LIMITS: Readonly<Record<string, string>> = {
  minimum: 'at least',
  exclusiveMinimum: 'more than',
  maximum: 'at most',
  exclusiveMaximum: 'less than',
};

function wrongForm(error: SchemaError, root: ConfigNode): Told {
  const own = error.parentSchema['x-hint'] as string | undefined;
  const hint = own ?? `it must match ${String(error.params['pattern'])}`;
  const found = show(error.data);
  return {
    code: 'Q4105',
    message: `${named(error.path, root)} has the wrong form, found ${found}`,
    details: { expected: hint, found, hint },
  };
}

function range(error: SchemaError, root: ConfigNode): Told {
  const { params, keyword, data } = error;
  const limit = params['limit'];
  const expected =
    keyword in LIMITS
      ? `${LIMITS[keyword]} ${String(limit)}`
      : keyword === 'minItems'
        ? `at least ${String(limit)} in the list`
        : keyword === 'maxItems'
          ? `at most ${String(limit)} in the list`
          : keyword === 'minLength'
            ? 'not be empty'
            : keyword === 'uniqueItems'
              ? 'name each only once'
              : 'be a regular expression';
  const verb = keyword in LIMITS ? 'be ' : /Items$/.test(keyword) && keyword !== 'uniqueItems' ? 'have ' : '';
  return {
    code: 'Q4105',
    message: `${named(error.path, root)} must ${verb}${expected}, found ${show(data)}`,
    details: { expected, found: show(data) },
  };
}

function tell(error: SchemaError, root: ConfigNode): Told | undefined {
  switch (error.keyword) {
    case 'type':
      return typeError(error, root);
    case 'additionalProperties':
      return unknownKey(error, root);
    case 'required':
      return missingKey(error, root);
    case 'enum':
    case 'const':
      return choice(error, root);
    case 'oneOf':
      return exactlyOne(error, root);
    case 'x-not-yet': {
      const instead = (error.schema as Record<string, string>)[String(error.data)];
      const message = `${named(error.path, root)}: ${show(error.data)} is not in this version of q4run`;
      return {
        code: 'Q4116',
        message,
        details: { found: show(error.data), ...(instead && { hint: instead }) },
      };
    }
    case 'pattern':
      return wrongForm(error, root);
    case 'if':
    case 'propertyNames':
      return undefined;
    default:
      return range(error, root);
  }
}

/**
 * Objections that are not of the file's making are left out: to the value of a late reference, and to `oneOf` branches
 * that `exactlyOne` sums up.
 */
export function toQ4Errors(errors: readonly SchemaError[], root: ConfigNode): Q4Error[] {
  const summed = new Set(
    errors.filter((error) => error.keyword === 'oneOf').map((error) => error.path.join('/')),
  );
  const told: Q4Error[] = [];
  const seen = new Set<string>();
  for (const error of errors) {
    const node = nodeAt(root, error.path);
    if (node?.kind === 'scalar' && node.late === true) continue;
    const inOneOf =
      error.keyword === 'required' && summed.has(error.path.join('/')) && !error.parentSchema.properties;
    const sentence = inOneOf ? undefined : tell(error, root);
    if (sentence === undefined) continue;
    const path = sentence.path ?? error.path;
    const origin = sentence.at === 'key' ? keyOriginAt(root, path) : originAt(root, path);
    const key = `${sentence.code} ${sentence.message}`;
    if (seen.has(key)) continue;
    seen.add(key);
    told.push(
      new Q4Error(sentence.code, sentence.message, { ...sentence.details, ...placeOf(origin), at: path }),
    );
  }
  return told;
}
