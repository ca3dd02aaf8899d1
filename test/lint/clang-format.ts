/** clang-format over the native sources: `--write` mends them, otherwise any difference is an error. */
import { spawnSync } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const ROOT = join(dirname(fileURLToPath(import.meta.url)), '../..');
const EXTENSIONS = ['.cpp', '.h', '.cu', '.cuh'];

const sources = ['native', 'test']
  .flatMap((folder) =>
    readdirSync(join(ROOT, folder), { recursive: true, encoding: 'utf8' }).map((path) =>
      join(ROOT, folder, path),
    ),
  )
  .filter(
    (path) => !path.includes('node_modules') && EXTENSIONS.some((extension) => path.endsWith(extension)),
  );

// The package's command is a Node script that picks the binary for this platform.
const packageJson = createRequire(import.meta.url).resolve('clang-format/package.json');
const command = join(dirname(packageJson), 'index.js');
const mode = process.argv.includes('--write') ? ['-i'] : ['--dry-run', '-Werror'];
if (sources.length === 0) throw new Error('no native sources found');
const result = spawnSync(process.execPath, [command, '--style=file', ...mode, ...sources], {
  cwd: ROOT,
  stdio: 'inherit',
});
process.exitCode = result.status ?? 1;
