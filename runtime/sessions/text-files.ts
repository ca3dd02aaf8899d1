/** The files of a model that are about text: copied from a checkpoint to whatever is made of it. */

/** The part of a stage's files that is needed here. */
export interface CopyingFiles {
  exists(path: string): Promise<boolean>;
  copy(from: string, to: string): Promise<void>;
  writeText(path: string, text: string): Promise<void>;
  join(...parts: string[]): string;
}

const NAMES = [
  'tokenizer.json',
  'tokenizer_config.json',
  'chat_template.jinja',
  'generation_config.json',
  'special_tokens_map.json',
  'added_tokens.json',
  'vocab.json',
  'merges.txt',
];

/** Copies those that there are, unchanged. @returns their names */
export async function copyTextFiles(
  files: CopyingFiles,
  from: string,
  to: string,
): Promise<readonly string[]> {
  const copied: string[] = [];
  for (const name of NAMES) {
    const source = files.join(from, name);
    if (!(await files.exists(source))) continue;
    await files.copy(source, files.join(to, name));
    copied.push(name);
  }
  return copied;
}

/** Writes texts that are in memory already. @returns their names */
export async function writeTextFiles(
  files: CopyingFiles,
  texts: ReadonlyMap<string, string>,
  to: string,
): Promise<readonly string[]> {
  for (const [name, text] of texts) await files.writeText(files.join(to, name), text);
  return [...texts.keys()];
}
