/** `q4run` with the stages of fake-registry.ts. */
import { fileURLToPath } from 'node:url';

import { main } from '../../runtime/runner/main.js';

const registry = fileURLToPath(new URL('./fake-registry.ts', import.meta.url));
process.exitCode = await main(process.argv.slice(2), { registry });
