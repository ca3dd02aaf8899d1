/** Where the package lies: sources under tsx and compiled files in dist/ find the same schemas and package.json. */
import { existsSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

function find(): string {
  let directory = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(directory, 'schemas', 'pipeline.schema.json'))) {
    const parent = dirname(directory);
    if (parent === directory) throw new Error('q4run is not installed completely: schemas/ is missing');
    directory = parent;
  }
  return directory;
}

/** Absolute path of the package's root. */
export const PACKAGE_ROOT = find();

export function packageVersion(): string {
  const text = readFileSync(join(PACKAGE_ROOT, 'package.json'), 'utf8');
  return (JSON.parse(text) as { version: string }).version;
}
