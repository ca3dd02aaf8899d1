/** What a file holds: .dat, safetensors, golden file or checkpoint directory. As one event. */
import { stat } from 'node:fs/promises';
import { basename } from 'node:path';

import { Q4Error } from '../../errors.js';
import type { FileEntry, FileIndex } from '../../engine/engine.js';
import type { EventBody } from '../events/event.js';
import { damageOf, readManifest } from './checkpoints.js';
import type { EngineModule } from './device.js';
import { unreadable } from './stage-files.js';

/** A matrix in NVFP4 is two or three entries of the file: codes, block scales and, if it has one, a global scale. */
const PARTS = /^(.*?)\.(qdata|scale|global_scale)$/;

interface TensorRow {
  readonly name: string;
  readonly type: string;
  readonly shape: readonly number[];
  readonly bytes: number;
  readonly offset: number;
}

/** One row a tensor: the parts of an NVFP4 matrix are put together, shown with the shape of the matrix. */
export function tensorRows(entries: readonly FileEntry[]): TensorRow[] {
  const names = new Set(entries.map(({ name }) => name));
  const rows = new Map<string, TensorRow>();
  for (const { name, type, shape, bytes, offset } of entries) {
    const [, owner, part] = PARTS.exec(name) ?? [];
    if (owner === undefined || !names.has(`${owner}.qdata`)) {
      rows.set(name, { name, type, shape, bytes, offset });
      continue;
    }
    const row = rows.get(owner);
    const levels = names.has(`${owner}.global_scale`) ? 'two levels' : 'one level';
    const whole =
      part === 'qdata' ? shape.map((n, i) => (i === shape.length - 1 ? n * 2 : n)) : (row?.shape ?? []);
    rows.set(owner, {
      name: owner,
      type: `nvfp4, ${levels}`,
      shape: whole,
      bytes: bytes + (row?.bytes ?? 0),
      offset: Math.min(offset, row?.offset ?? offset),
    });
  }
  return [...rows.values()];
}

const elements = (shape: readonly number[]): number => shape.reduce((a, b) => a * b, 1);

function describeIndex(index: FileIndex): EventBody {
  const rows = tensorRows(index.entries);
  const byType: Record<string, { tensors: number; elements: number; bytes: number }> = {};
  for (const { type, shape, bytes } of rows) {
    const sum = (byType[type] ??= { tensors: 0, elements: 0, bytes: 0 });
    sum.tensors += 1;
    sum.elements += elements(shape);
    sum.bytes += bytes;
  }
  const has = (name: string): boolean => index.entries.some((entry) => entry.name === name);
  const golden = index.format === 'safetensors' && has('input_ids') && has('logits');
  return {
    ev: 'inspect',
    kind: golden ? 'golden' : index.format,
    path: index.path,
    bytes: index.fileBytes,
    entries: index.entries.length,
    elements: rows.reduce((sum, { shape }) => sum + elements(shape), 0),
    types: byType,
    metadata: index.metadata,
    tensors: rows.map((row) => ({ ...row, shape: [...row.shape] })),
  };
}

async function describeCheckpoint(path: string): Promise<EventBody> {
  const manifest = await readManifest(path);
  if (typeof manifest === 'string') {
    throw new Q4Error('Q4414', `${path} is not a whole checkpoint: ${manifest}`, { file: path });
  }
  return {
    ev: 'inspect',
    kind: 'checkpoint',
    path,
    bytes: manifest.files.reduce((sum, file) => sum + file.bytes, 0),
    stage: manifest.stage,
    step: manifest.step,
    score: manifest.score,
    pinned: manifest.pinned,
    damage: await damageOf(path),
    meta: manifest.meta,
    files: manifest.files.map((file) => ({ ...file })),
  };
}

export async function inspectFile(path: string, engines: EngineModule): Promise<EventBody> {
  const found = await stat(path).catch((cause: unknown) => {
    throw unreadable(path, cause);
  });
  if (found.isDirectory()) return describeCheckpoint(path);
  const engine = engines.openEngine({ device: 'cpu', threads: 1 });
  try {
    const safetensors = basename(path).endsWith('.safetensors');
    return describeIndex(
      safetensors ? await engine.files.indexSafetensors(path) : await engine.files.indexDat(path),
    );
  } finally {
    engine.dispose();
  }
}
