/** The files of a stage: every effect on the file system goes through here. */
import { createReadStream } from 'node:fs';
import { access, copyFile, mkdir, readFile, rename, rm, stat } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';

import { Q4Error } from '../../errors.js';
import type { StageFiles } from '../../../stages/index.js';
import { bytesText } from '../machine.js';
import { fileSha256, syncPath, writeDurably } from './durable.js';

const DEFAULT_TEXT_BYTES = 256 * 1024 * 1024;

/** System errors as people know them. */
const REASONS: Readonly<Record<string, string>> = {
  ENOENT: 'there is no such file',
  EACCES: 'permission denied',
  EPERM: 'permission denied',
  EISDIR: 'it is a directory',
  ENOTDIR: 'a part of the path is not a directory',
  ENOSPC: 'the disk is full',
  EROFS: 'the disk is read-only',
  EDQUOT: 'the disk quota is used up',
};

const reason = (cause: unknown): string => {
  const { code, message } = cause as NodeJS.ErrnoException;
  return REASONS[code ?? ''] ?? message;
};

export const unreadable = (file: string, cause: unknown): Q4Error =>
  cause instanceof Q4Error
    ? cause
    : new Q4Error('Q4411', `cannot read ${file}: ${reason(cause)}`, { file, cause });

export const unwritable = (file: string, cause: unknown): Q4Error => {
  if (cause instanceof Q4Error) return cause;
  const full = ['ENOSPC', 'EDQUOT'].includes((cause as NodeJS.ErrnoException).code ?? '');
  return new Q4Error(full ? 'Q4412' : 'Q4413', `cannot write ${file}: ${reason(cause)}`, { file, cause });
};

const LINE_FEED = 10;
const UTF8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

/** Whole lines as bytes, which may hold several: text is cut at line feeds only, never within a character. */
async function* blocks(path: string): AsyncIterable<Buffer> {
  let rest: Buffer[] = [];
  try {
    for await (const piece of createReadStream(path, { highWaterMark: 1 << 18 })) {
      const chunk = piece as Buffer;
      const end = chunk.lastIndexOf(LINE_FEED);
      if (end >= 0) yield Buffer.concat([...rest, chunk.subarray(0, end)]);
      if (end >= 0) rest = [];
      rest.push(chunk.subarray(end + 1));
    }
  } catch (cause) {
    throw unreadable(path, cause);
  }
  const last = Buffer.concat(rest);
  if (last.length > 0) yield last;
}

async function* lines(path: string): AsyncIterable<string> {
  let number = 0;
  for await (const block of blocks(path)) {
    let text: string;
    try {
      text = UTF8.decode(block);
    } catch (cause) {
      const line = number + firstUndecodable(block);
      const hint = 'save the file as UTF-8';
      throw new Q4Error('Q4411', `${path} is not UTF-8 text`, { file: path, line, hint, cause });
    }
    for (const line of text.split('\n')) {
      number += 1;
      const whole = number === 1 && line.startsWith('\uFEFF') ? line.slice(1) : line;
      yield whole.endsWith('\r') ? whole.slice(0, -1) : whole;
    }
  }
}

/** 1-based, within the block. */
function firstUndecodable(block: Buffer): number {
  let line = 1;
  for (let at = 0; at <= block.length; line++) {
    const feed = block.indexOf(LINE_FEED, at);
    const end = feed < 0 ? block.length : feed;
    try {
      UTF8.decode(block.subarray(at, end));
    } catch {
      return line;
    }
    at = end + 1;
  }
  return line;
}

export const stageFiles: StageFiles = {
  async exists(path) {
    return access(path).then(
      () => true,
      () => false,
    );
  },

  async readText(path, maxBytes = DEFAULT_TEXT_BYTES) {
    try {
      const { size } = await stat(path);
      if (size > maxBytes) {
        const found = bytesText(size);
        throw new Q4Error('Q4411', `${path} is larger than ${bytesText(maxBytes)}`, { file: path, found });
      }
      const bytes = await readFile(path);
      return new TextDecoder('utf-8', { fatal: true }).decode(bytes);
    } catch (cause) {
      if (cause instanceof TypeError)
        throw new Q4Error('Q4411', `${path} is not UTF-8 text`, {
          file: path,
          hint: 'save the file as UTF-8',
          cause,
        });
      throw unreadable(path, cause);
    }
  },

  readLines: lines,

  async writeText(path, text) {
    await writeDurably(path, text).catch((cause: unknown) => {
      throw unwritable(path, cause);
    });
  },

  async copy(from, to) {
    const aside = join(dirname(to), `.${basename(to)}.${process.pid}.tmp`);
    try {
      await mkdir(dirname(to), { recursive: true });
      await copyFile(from, aside);
      await syncPath(aside);
      await rename(aside, to);
      await syncPath(dirname(to));
    } catch (cause) {
      await rm(aside, { force: true });
      const missing = !(await stageFiles.exists(from));
      throw missing ? unreadable(from, cause) : unwritable(to, cause);
    }
  },

  async bytes(path) {
    return stat(path).then(
      ({ size }) => size,
      (cause: unknown) => {
        throw unreadable(path, cause);
      },
    );
  },

  async sha256(path) {
    return fileSha256(path).catch((cause: unknown) => {
      throw unreadable(path, cause);
    });
  },

  join: (...parts) => join(...parts),
};
