/** report.json and report.html beside each other. */
import { join } from 'node:path';

import type { RunState } from '../events/run-state.js';
import { writeWhole } from '../supervisor/run-directory.js';
import { reportPage, type ConfigurationRow } from './page.js';
import { makeReport, type Report } from './report.js';

/** JSON has no NaN: a diverged loss is written as the text "NaN". */
const finite = (_key: string, value: unknown): unknown =>
  typeof value === 'number' && !Number.isFinite(value) ? String(value) : value;

export function writeReport(
  directory: string,
  state: RunState,
  exit: number,
  version: string,
  configuration: readonly ConfigurationRow[],
): Report {
  const report = makeReport(state, exit, version, Date.now());
  writeWhole(join(directory, 'report.html'), reportPage(report, state, configuration));
  writeWhole(join(directory, 'report.json'), `${JSON.stringify(report, finite, 2)}\n`);
  return report;
}
