/** What a file holds (.dat, safetensors, golden file, checkpoint, model directory), or what two differ in. As one event. */
import { readdir, stat } from 'node:fs/promises';
import { basename, join } from 'node:path';

import { Q4Error } from '../../errors.js';
import type { FileIndex, TensorFiles } from '../../engine/engine.js';
import type { EventBody } from '../events/event.js';
import { damageOf, readManifest } from './checkpoints.js';
import type { EngineModule } from './device.js';
import { differences } from './inspect-diff.js';
import { unreadable } from './stage-files.js';
import { placed, tensorRows, type TensorRow } from './tensor-rows.js';
import { summariseScales } from './tensor-values.js';

const elements = (shape: readonly number[]): number => shape.reduce((a, b) => a * b, 1);

/** Tensors of a file, of a directory with a safetensors checkpoint, or of a checkpoint's weights. */
interface Found {
  readonly kind: string;
  readonly path: string;
  readonly indices: readonly FileIndex[];
  readonly rows: readonly TensorRow[];
}

async function openTensors(path: string, files: TensorFiles): Promise<Found> {
  const found = await stat(path).catch((cause: unknown) => {
    throw unreadable(path, cause);
  });
  const paths = found.isDirectory() ? await tensorFilesIn(path) : [path];
  const indices: FileIndex[] = [];
  for (const file of paths)
    indices.push(
      basename(file).endsWith('.safetensors')
        ? await files.indexSafetensors(file)
        : await files.indexDat(file),
    );
  const entries = placed(indices);
  const golden = indices[0]?.format === 'safetensors' && entries.has('input_ids') && entries.has('logits');
  const kind = golden ? 'golden' : indices[0]!.format;
  return { kind, path, indices, rows: tensorRows(entries) };
}

/** weights.dat of a checkpoint, or the safetensors files of a model. */
async function tensorFilesIn(directory: string): Promise<string[]> {
  const names = (await readdir(directory)).sort();
  const chosen = names.includes('weights.dat')
    ? ['weights.dat']
    : names.filter((name) => name.endsWith('.safetensors') && !name.endsWith('.extras.safetensors'));
  if (chosen.length === 0)
    throw new Q4Error('Q4287', `${directory} holds no tensor files`, {
      file: directory,
      expected: 'a checkpoint, or a directory with safetensors',
    });
  return chosen.map((name) => join(directory, name));
}

async function describeTensors(found: Found, files: TensorFiles): Promise<EventBody> {
  const { rows, indices } = found;
  const byType: Record<string, { tensors: number; elements: number; bytes: number }> = {};
  for (const { type, shape, bytes } of rows) {
    const sum = (byType[type] ??= { tensors: 0, elements: 0, bytes: 0 });
    sum.tensors += 1;
    sum.elements += elements(shape);
    sum.bytes += bytes;
  }
  const scales = await summariseScales(files, rows);
  return {
    ev: 'inspect',
    kind: found.kind,
    path: found.path,
    bytes: indices.reduce((sum, { fileBytes }) => sum + fileBytes, 0),
    files: indices.length,
    entries: indices.reduce((sum, { entries }) => sum + entries.length, 0),
    elements: rows.reduce((sum, { shape }) => sum + elements(shape), 0),
    types: byType,
    quantisation: scales && { ...scales },
    metadata: { ...indices[0]?.metadata },
    tensors: rows.map(({ name, type, shape, bytes, offset }) => ({
      name,
      type,
      shape: [...shape],
      bytes,
      offset,
    })),
  };
}

async function describeDifferences(a: Found, b: Found, files: TensorFiles): Promise<EventBody> {
  const found = await differences(files, a.rows, b.rows);
  return {
    ev: 'inspect',
    kind: 'difference',
    path: a.path,
    other: b.path,
    bytes: [...a.indices, ...b.indices].reduce((sum, { fileBytes }) => sum + fileBytes, 0),
    same: found.same,
    same_values: found.same_values,
    only_here: [...found.only_a],
    only_there: [...found.only_b],
    different: found.different.map((one) => ({ ...one })),
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

/** @param other compared with `path` when it is not empty */
export async function inspectFile(path: string, other: string, engines: EngineModule): Promise<EventBody> {
  const found = await stat(path).catch((cause: unknown) => {
    throw unreadable(path, cause);
  });
  if (other === '' && found.isDirectory() && (await hasManifest(path))) return describeCheckpoint(path);
  const engine = engines.openEngine({ device: 'cpu', threads: 1 });
  try {
    const tensors = await openTensors(path, engine.files);
    if (other === '') return await describeTensors(tensors, engine.files);
    return await describeDifferences(tensors, await openTensors(other, engine.files), engine.files);
  } finally {
    engine.dispose();
  }
}

/** Anything that is no model's directory is told what a checkpoint would have. */
async function hasManifest(directory: string): Promise<boolean> {
  const names = await readdir(directory);
  return names.includes('manifest.json') || !names.some((name) => name.endsWith('.safetensors'));
}
