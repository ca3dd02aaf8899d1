/** Makes a tensor file from the entries of others. See types.ts for the contract. */
import { addon } from './addon.js';
import { fileAddon, fileCall, longFileCall } from './file-calls.js';
import { makeDirectory } from './file-writing.js';
import type {
  EntryOf,
  FileIndex,
  FileType,
  TranscodeItem,
  TranscodeOptions,
  Transcoded,
  ValueSource,
} from './types.js';

interface OutputEntry {
  readonly name: string;
  readonly type: FileType;
  readonly shape: readonly number[];
}

const BLOCK = 16;

/** The native job: entries to be written, files to be read, and what to do, all by number. */
class Job {
  readonly entries: OutputEntry[] = [];
  readonly files: FileIndex[] = [];
  readonly actions: object[] = [];
  readonly #groups = new Map<string, number>();

  constructor(items: readonly TranscodeItem[]) {
    for (const item of items) this.actions.push(this.#action(item));
  }

  #write(name: string, type: FileType, shape: readonly number[]): number {
    return this.entries.push({ name, type, shape }) - 1;
  }

  #entry({ index, entry }: EntryOf): object {
    if (!this.files.includes(index)) this.files.push(index);
    return { file: this.files.indexOf(index), entry };
  }

  #source(source: ValueSource): object {
    if ('plain' in source) return { plain: this.#entry(source.plain) };
    const { codes, scales, globalScale } = source;
    return { codes: this.#entry(codes), scales: this.#entry(scales), globalScale };
  }

  #group(name: string): number {
    const number = this.#groups.get(name) ?? this.#groups.size;
    this.#groups.set(name, number);
    return number;
  }

  #action(item: TranscodeItem): object {
    const { kind, name, shape } = item;
    if (kind === 'data') return { kind, entry: this.#write(name, item.type, shape), data: item.data };
    if (kind === 'copy') {
      const source = { plain: this.#entry(item.source) };
      return { kind, entry: this.#write(name, item.type, shape), source, part: item.part };
    }
    if (kind === 'convert')
      return { kind, entry: this.#write(name, item.type, shape), source: this.#source(item.source) };
    const [out, inputs] = shape as [number, number];
    return {
      kind,
      entry: this.#write(`${name}.qdata`, 'u8', [out, inputs / 2]),
      scaleEntry: this.#write(`${name}.scale`, 'e4m3', [out, inputs / BLOCK]),
      globalEntry: item.twoLevel ? this.#write(`${name}.global_scale`, 'f32', [1]) : -1,
      source: this.#source(item.source),
      scales: item.scales,
      group: this.#group(item.group),
    };
  }
}

export async function transcode(
  path: string,
  format: 'dat' | 'safetensors',
  items: readonly TranscodeItem[],
  options: TranscodeOptions = {},
): Promise<Transcoded> {
  const { entries, files, actions } = new Job(items);
  const metadata = Object.entries(options.metadata ?? {});
  await makeDirectory(path);
  const report = await longFileCall(options, (cancel, onProgress) =>
    fileAddon().fileTranscode({ path, format, entries, metadata, files, actions }, cancel, onProgress),
  );
  options.onProgress?.(report.sourceBytes, report.sourceBytes); // native progress is throttled: the last word is ours
  const { writer, sourceBytes, seconds } = report;
  return {
    sourceBytes,
    seconds,
    quantised: report.quantised.map(({ action, ...rest }) => ({ name: items[action]!.name, ...rest })),
    commit: () => fileCall(() => fileAddon().fileCommit(writer)),
    dispose: () => addon().dispose(writer),
  };
}
