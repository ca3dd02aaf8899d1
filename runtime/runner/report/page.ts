import type { RunState } from '../events/run-state.js';
import type { Report } from './report.js';
export interface ConfigurationRow {
  readonly key: string;
  readonly value: string;
  readonly origin: string;
}
export const reportPage = (
  report: Report,
  _state: RunState,
  _configuration: readonly ConfigurationRow[],
): string => report.name;
