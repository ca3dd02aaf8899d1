/** report.json of a pipeline that ran in this process: what tests read of it. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';

import type { Here } from './in-process.js';

export function writeReportOf(runDirectory: string, here: Here): void {
  const stages = here.events
    .filter(({ ev }) => ev === 'stage-end')
    .map(({ stage, status, outputs }) => ({ id: stage, uses: stage, status, outputs }));
  const report = { status: here.exit === 0 ? 'done' : 'failed', exit_code: here.exit, stages };
  writeFileSync(join(runDirectory, 'report.json'), JSON.stringify(report));
}
