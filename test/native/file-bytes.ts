/** Builds tensor files byte by byte, right and wrong ones, and gives tests a directory that goes away. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/** Unsigned LEB128; `bytes` longer than needed pads it to a form that is not minimal. */
export function leb(value: number | bigint, bytes = 0): Buffer {
  const out: number[] = [];
  let rest = BigInt(value);
  do {
    out.push(Number(rest & 0x7fn));
    rest >>= 7n;
  } while (rest > 0n);
  while (out.length < bytes) out.push(0);
  return Buffer.from(out.map((byte, i) => (i < out.length - 1 ? byte | 0x80 : byte)));
}

export interface Piece {
  name: string | Buffer;
  type: number;
  shape: (number | bigint)[];
  payload?: Buffer | number;
}

export const TYPE = { u8: 0, i8: 1, i16: 2, i32: 3, i64: 4, f16: 5, f32: 6, f64: 7, bool: 11, bf16: 15 };
export const E2M1X2 = 100;
export const E4M3 = 101;

/** One entry; a number as payload is that many zero bytes. */
export function entry({ name, type, shape, payload = 0 }: Piece): Buffer {
  const key = Buffer.from(name);
  return Buffer.concat([
    leb(key.length),
    key,
    leb(type),
    leb(shape.length),
    ...shape.map((dim) => leb(dim)),
    typeof payload === 'number' ? Buffer.alloc(payload) : payload,
  ]);
}

export const dat = (...pieces: Piece[]): Buffer => Buffer.concat([leb(pieces.length), ...pieces.map(entry)]);

/** Codes, scales (all 1.0) and global scale of a matrix, as entries. */
export function quantised(name: string, out: number, inputs: number, globalScale = true): Piece[] {
  const pieces: Piece[] = [
    {
      name: `${name}.qdata`,
      type: TYPE.u8,
      shape: [out, inputs / 2],
      payload: Buffer.alloc((out * inputs) / 2, 0x21),
    },
    {
      name: `${name}.scale`,
      type: E4M3,
      shape: [out, inputs / 16],
      payload: Buffer.alloc((out * inputs) / 16, 0x38),
    },
  ];
  const one = Buffer.from(Float32Array.of(1).buffer);
  if (globalScale) pieces.push({ name: `${name}.global_scale`, type: TYPE.f32, shape: [1], payload: one });
  return pieces;
}

/** A safetensors file with this header, as it stands or made to JSON; `data` follows it. */
export function safetensors(
  header: string | Buffer | object,
  data: Buffer | number = 0,
  length?: number | bigint,
): Buffer {
  const json =
    typeof header === 'string' || Buffer.isBuffer(header)
      ? Buffer.from(header)
      : Buffer.from(JSON.stringify(header));
  const prefix = Buffer.alloc(8);
  prefix.writeBigUInt64LE(BigInt(length ?? json.length));
  return Buffer.concat([prefix, json, typeof data === 'number' ? Buffer.alloc(data) : data]);
}

export interface Scratch {
  readonly path: string;
  /** Writes a file there and returns its path. */
  put(name: string, bytes: Buffer): string;
  remove(): void;
}

export function scratch(): Scratch {
  const path = mkdtempSync(join(tmpdir(), 'q4run-files-'));
  return {
    path,
    put(name, bytes) {
      const file = join(path, name);
      writeFileSync(file, bytes);
      return file;
    },
    remove: () => rmSync(path, { recursive: true, force: true }),
  };
}
