/** Malformed tensor files and how each is refused; also the seeds of the fuzzers (test/fuzz/). */
import { dat, E4M3, entry, leb, quantised, safetensors, TYPE } from './file-bytes.js';

export interface Refusal {
  readonly what: string;
  readonly bytes: Buffer;
  readonly code: string;
  /** Where the message must point to. */
  readonly offset?: number;
  /** The escaped name that the message must hold. */
  readonly entry?: string;
}

const plain = { name: 'a', type: TYPE.u8, shape: [2], payload: 2 };
const named = (name: string | Buffer): Buffer =>
  dat({ name, type: TYPE.u8, shape: [] as number[], payload: 1 });
const shaped = (shape: (number | bigint)[], type = TYPE.u8, payload = 0): Buffer =>
  dat({ name: 'a', type, shape, payload });
const one = leb(1);
const key = Buffer.from([1, 0x61]);
const [codes, scales, global] = quantised('x.weight', 4, 32) as [
  ReturnType<typeof quantised>[0],
  ReturnType<typeof quantised>[0],
  ReturnType<typeof quantised>[0],
];

export const DAT_REFUSALS: readonly Refusal[] = [
  { what: 'an empty file', bytes: Buffer.alloc(0), code: 'Q4203', offset: 0 },
  { what: 'a count cut short', bytes: Buffer.from([0x80]), code: 'Q4203', offset: 0 },
  { what: 'a count without entries', bytes: one, code: 'Q4207', offset: 0 },
  {
    what: 'a count of 2^63',
    bytes: Buffer.concat([leb(1n << 63n), Buffer.alloc(64)]),
    code: 'Q4207',
    offset: 0,
  },
  { what: 'one entry too few', bytes: Buffer.concat([leb(2), entry(plain)]), code: 'Q4207', offset: 0 },
  {
    what: 'one entry missing, behind a longer one',
    bytes: Buffer.concat([leb(2), entry({ ...plain, shape: [64], payload: 64 })]),
    code: 'Q4203',
    offset: 1 + 5 + 64,
  },
  {
    what: 'a number of 11 bytes',
    bytes: Buffer.from([...Array<number>(10).fill(0xff), 0]),
    code: 'Q4206',
    offset: 0,
  },
  {
    what: 'a number of 65 bits',
    bytes: Buffer.from([...Array<number>(9).fill(0xff), 2]),
    code: 'Q4206',
    offset: 0,
  },
  { what: 'a count not minimal', bytes: Buffer.concat([leb(1, 2), entry(plain)]), code: 'Q4222', offset: 0 },
  { what: 'zero not minimal', bytes: Buffer.from([0x80, 0]), code: 'Q4222', offset: 0 },
  {
    what: 'a dim not minimal',
    bytes: Buffer.concat([one, key, leb(0), leb(1), leb(2, 3), Buffer.alloc(2)]),
    code: 'Q4222',
    offset: 5,
    entry: 'a',
  },
  {
    what: 'a name of no bytes',
    bytes: Buffer.concat([one, leb(0), Buffer.alloc(4)]),
    code: 'Q4208',
    offset: 1,
  },
  { what: 'a name of 1,025 bytes', bytes: named('n'.repeat(1025)), code: 'Q4208', offset: 1 },
  {
    what: 'a name longer than the file',
    bytes: Buffer.from([1, 9, 0x61, 0x62, 0x63]),
    code: 'Q4203',
    offset: 1,
  },
  {
    what: 'a name that is not UTF-8',
    bytes: named(Buffer.from([0x61, 0xff])),
    code: 'Q4212',
    offset: 1,
    entry: 'a\\xff',
  },
  { what: 'an overlong slash', bytes: named(Buffer.from([0xc0, 0xaf])), code: 'Q4212', offset: 1 },
  { what: 'a surrogate', bytes: named(Buffer.from([0xed, 0xa0, 0x80])), code: 'Q4212', offset: 1 },
  {
    what: 'a value over U+10FFFF',
    bytes: named(Buffer.from([0xf4, 0x90, 0x80, 0x80])),
    code: 'Q4212',
    offset: 1,
  },
  { what: 'UTF-8 cut short', bytes: named(Buffer.from([0x61, 0xe4, 0xb8])), code: 'Q4212', offset: 1 },
  { what: 'a line feed in a name', bytes: named('a\nb'), code: 'Q4213', offset: 1, entry: 'a\\x0ab' },
  {
    what: 'an escape sequence in a name',
    bytes: named('\x1b[2Ja'),
    code: 'Q4213',
    offset: 1,
    entry: '\\x1b[2Ja',
  },
  { what: 'a C1 control in a name', bytes: named('a\u009bb'), code: 'Q4213', offset: 1 },
  { what: 'a NUL in a name', bytes: named('a\0'), code: 'Q4213', offset: 1 },
  { what: 'a path', bytes: named('../../etc/passwd'), code: 'Q4213', offset: 1 },
  { what: 'a path of Windows', bytes: named('c:\\a'), code: 'Q4213', offset: 1 },
  { what: 'dots alone', bytes: named('..'), code: 'Q4213', offset: 1 },
  { what: 'an empty part', bytes: named('a..b'), code: 'Q4213', offset: 1 },
  { what: '__proto__', bytes: named('__proto__'), code: 'Q4213', offset: 1, entry: '__proto__' },
  { what: '__proto__ as a part', bytes: named('a.__proto__.b'), code: 'Q4213', offset: 1 },
  { what: 'a name twice', bytes: dat(plain, plain), code: 'Q4214', offset: 8, entry: 'a' },
  { what: 'type 8', bytes: dat({ ...plain, type: 8 }), code: 'Q4215', offset: 3, entry: 'a' },
  {
    what: "TorchSharp's unknown type",
    bytes: dat({ ...plain, type: 4711 }),
    code: 'Q4215',
    offset: 3,
    entry: 'a',
  },
  {
    what: 'a type of 2^32',
    bytes: Buffer.concat([one, key, leb(1n << 32n), leb(0)]),
    code: 'Q4215',
    offset: 3,
    entry: 'a',
  },
  {
    what: 'rank 9',
    bytes: shaped(Array<number>(9).fill(1), TYPE.u8, 1),
    code: 'Q4209',
    offset: 4,
    entry: 'a',
  },
  {
    what: 'a rank of 2^40',
    bytes: Buffer.concat([one, key, leb(0), leb(1n << 40n)]),
    code: 'Q4209',
    offset: 4,
    entry: 'a',
  },
  {
    what: 'a dim that is missing',
    bytes: Buffer.concat([one, key, leb(0), leb(2), leb(1)]),
    code: 'Q4203',
    offset: 6,
  },
  {
    what: 'a payload one byte short',
    bytes: dat({ ...plain, payload: 1 }),
    code: 'Q4210',
    offset: 6,
    entry: 'a',
  },
  { what: 'a tensor of 2^40 bytes', bytes: shaped([1n << 40n]), code: 'Q4210', offset: 11, entry: 'a' },
  { what: 'a dim of 2^53', bytes: shaped([1n << 53n]), code: 'Q4211', offset: 5, entry: 'a' },
  { what: 'a dim of 2^64 - 1', bytes: shaped([(1n << 64n) - 1n]), code: 'Q4211', offset: 5, entry: 'a' },
  { what: 'dims that overflow', bytes: shaped([1n << 32n, 1n << 32n]), code: 'Q4211', offset: 1, entry: 'a' },
  {
    what: 'dims that overflow to 0',
    bytes: shaped([1n << 32n, 1n << 32n, 2]),
    code: 'Q4211',
    offset: 1,
    entry: 'a',
  },
  {
    what: 'dims that overflow before a 0',
    bytes: shaped([1n << 40n, 1n << 40n, 0]),
    code: 'Q4211',
    offset: 1,
    entry: 'a',
  },
  {
    what: 'a 0 before dims that overflow',
    bytes: shaped([0, 1n << 40n, 1n << 40n]),
    code: 'Q4211',
    offset: 1,
    entry: 'a',
  },
  {
    what: 'bytes that overflow',
    bytes: shaped([1n << 50n, 1n << 11n], TYPE.f64),
    code: 'Q4211',
    offset: 1,
    entry: 'a',
  },
  { what: 'a trailing byte', bytes: Buffer.concat([dat(plain), Buffer.alloc(1)]), code: 'Q4204', offset: 8 },
  { what: 'bytes after no entries', bytes: Buffer.from([0, 0]), code: 'Q4204', offset: 1 },
  { what: 'codes without scales', bytes: dat(codes), code: 'Q4216', offset: 1, entry: 'x.weight.qdata' },
  { what: 'scales without codes', bytes: dat(scales), code: 'Q4216', offset: 1, entry: 'x.weight.scale' },
  {
    what: 'a global scale without codes',
    bytes: dat(global),
    code: 'Q4216',
    offset: 1,
    entry: 'x.weight.global_scale',
  },
  {
    what: 'stored plain and quantised',
    bytes: dat(codes, scales, { ...plain, name: 'x.weight' }),
    code: 'Q4214',
    offset: 1,
  },
  {
    what: 'stored as X.weight.qdata and X.qdata',
    bytes: dat(...quantised('x', 4, 32, false), codes, scales),
    code: 'Q4214',
    entry: 'x.weight.qdata',
  },
  {
    what: 'codes of fp16',
    bytes: dat({ ...codes, type: TYPE.f16, payload: 128 }, scales),
    code: 'Q4217',
    offset: 1,
  },
  { what: 'codes of rank 3', bytes: dat({ ...codes, shape: [4, 4, 4] }, scales), code: 'Q4217', offset: 1 },
  {
    what: 'scales of u8',
    bytes: dat(scales ? { ...scales, type: TYPE.u8 } : plain, codes),
    code: 'Q4217',
    offset: 1,
  },
  {
    what: 'scales transposed',
    bytes: dat(codes, { ...scales, shape: [2, 4] }),
    code: 'Q4217',
    entry: 'x.weight.scale',
  },
  {
    what: 'scales for 32 values',
    bytes: dat(codes, { ...scales, shape: [4, 1], payload: 4 }),
    code: 'Q4217',
  },
  {
    what: 'a global scale of two',
    bytes: dat(codes, scales, { ...global, shape: [2], payload: 8 }),
    code: 'Q4217',
  },
  {
    what: 'a global scale of f64',
    bytes: dat(codes, scales, { ...global, type: TYPE.f64, payload: 8 }),
    code: 'Q4217',
  },
  {
    what: '24 inputs',
    bytes: dat(
      { ...codes, shape: [4, 12], payload: 48 },
      { ...scales, type: E4M3, shape: [4, 1], payload: 4 },
    ),
    code: 'Q4218',
    offset: 1,
    entry: 'x.weight.qdata',
  },
];

const f32 = (begin: number, end: number, shape: number[]): object => ({
  dtype: 'F32',
  shape,
  data_offsets: [begin, end],
});
const a = '"dtype":"U8","shape":[1],"data_offsets":[0,1]';

export const SAFETENSORS_REFUSALS: readonly Refusal[] = [
  { what: 'an empty file', bytes: Buffer.alloc(0), code: 'Q4203', offset: 0 },
  { what: 'seven bytes', bytes: Buffer.alloc(7), code: 'Q4203', offset: 0 },
  { what: 'a header of no bytes', bytes: Buffer.alloc(8), code: 'Q4230', offset: 0 },
  { what: 'a header over 100 MB', bytes: safetensors('{}', 0, 100_000_001), code: 'Q4230', offset: 0 },
  {
    what: 'a header of 2^64 - 1 bytes',
    bytes: safetensors('{}', 0, (1n << 64n) - 1n),
    code: 'Q4230',
    offset: 0,
  },
  { what: 'a header past the end', bytes: safetensors('{}', 0, 3), code: 'Q4203', offset: 0 },
  { what: 'an array', bytes: safetensors('[]'), code: 'Q4231', offset: 8 },
  { what: 'white space first', bytes: safetensors(' {}'), code: 'Q4231' },
  { what: 'no end', bytes: safetensors('{"a":'), code: 'Q4231', offset: 13 },
  { what: 'two objects', bytes: safetensors('{}{}'), code: 'Q4231', offset: 10 },
  { what: 'a trailing comma', bytes: safetensors(`{"a":{${a}},}`, 1), code: 'Q4231' },
  {
    what: 'not UTF-8',
    bytes: safetensors(Buffer.from([0x7b, 0x22, 0xff, 0x22, 0x7d])),
    code: 'Q4231',
    offset: 10,
  },
  { what: 'a control character', bytes: safetensors('{"a\n":{}}'), code: 'Q4231', offset: 11 },
  { what: 'a bad escape', bytes: safetensors('{"\\x41":{}}'), code: 'Q4231' },
  { what: 'half a surrogate pair', bytes: safetensors('{"\\ud83d":{}}'), code: 'Q4231' },
  { what: 'nesting', bytes: safetensors('{"a":'.repeat(100_000)), code: 'Q4231', entry: 'a' },
  {
    what: 'nested arrays',
    bytes: safetensors(`{"a":{"shape":${'['.repeat(100_000)}`),
    code: 'Q4231',
    entry: 'a',
  },
  { what: 'a tensor that is a number', bytes: safetensors('{"a":1}'), code: 'Q4231', offset: 13, entry: 'a' },
  { what: 'metadata that is a number', bytes: safetensors('{"__metadata__":{"a":1}}'), code: 'Q4231' },
  { what: 'a tensor twice', bytes: safetensors(`{"a":{${a}},"a":{${a}}}`, 1), code: 'Q4214', offset: 61 },
  {
    what: 'a tensor twice, once escaped',
    bytes: safetensors(`{"a":{${a}},"\\u0061":{${a}}}`, 1),
    code: 'Q4214',
  },
  { what: 'a member twice', bytes: safetensors(`{"a":{${a},"shape":[1]}}`, 1), code: 'Q4214', entry: 'a' },
  { what: 'metadata twice', bytes: safetensors('{"__metadata__":{},"__metadata__":{}}'), code: 'Q4214' },
  {
    what: 'an unknown member',
    bytes: safetensors(`{"a":{${a},"strides":[1]}}`, 1),
    code: 'Q4231',
    entry: 'a',
  },
  {
    what: 'no dtype',
    bytes: safetensors('{"a":{"shape":[1],"data_offsets":[0,1]}}', 1),
    code: 'Q4231',
    entry: 'a',
  },
  {
    what: 'one offset',
    bytes: safetensors('{"a":{"dtype":"U8","shape":[1],"data_offsets":[0]}}', 1),
    code: 'Q4231',
  },
  {
    what: 'three offsets',
    bytes: safetensors('{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,1]}}', 1),
    code: 'Q4231',
  },
  {
    what: 'an unknown dtype',
    bytes: safetensors({ a: { dtype: 'F4', shape: [2], data_offsets: [0, 1] } }, 1),
    code: 'Q4215',
    entry: 'a',
  },
  { what: 'a negative dim', bytes: safetensors({ a: f32(0, 4, [-1]) }, 4), code: 'Q4231', entry: 'a' },
  {
    what: 'a dim with a fraction',
    bytes: safetensors('{"a":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}}', 1),
    code: 'Q4231',
  },
  {
    what: 'a dim with an exponent',
    bytes: safetensors('{"a":{"dtype":"U8","shape":[1e0],"data_offsets":[0,1]}}', 1),
    code: 'Q4231',
  },
  {
    what: 'a dim with a leading zero',
    bytes: safetensors('{"a":{"dtype":"U8","shape":[01],"data_offsets":[0,1]}}', 1),
    code: 'Q4231',
  },
  {
    what: 'a dim of 2^53',
    bytes: safetensors(`{"a":{"dtype":"U8","shape":[${1n << 53n}],"data_offsets":[0,1]}}`, 1),
    code: 'Q4231',
  },
  {
    what: 'rank 9',
    bytes: safetensors({ a: f32(0, 4, Array<number>(9).fill(1)) }, 4),
    code: 'Q4209',
    entry: 'a',
  },
  {
    what: 'dims that overflow',
    bytes: safetensors({ a: f32(0, 0, [2 ** 40, 2 ** 40, 0]) }),
    code: 'Q4211',
    entry: 'a',
  },
  {
    what: 'offsets that do not match',
    bytes: safetensors({ a: f32(0, 8, [1]) }, 8),
    code: 'Q4233',
    offset: 9,
    entry: 'a',
  },
  { what: 'offsets that fall', bytes: safetensors({ a: f32(4, 0, [1]) }, 4), code: 'Q4233', entry: 'a' },
  { what: 'data cut short', bytes: safetensors({ a: f32(0, 4, [1]) }, 3), code: 'Q4210', entry: 'a' },
  { what: 'trailing data', bytes: safetensors({ a: f32(0, 4, [1]) }, 5), code: 'Q4204' },
  { what: 'data without tensors', bytes: safetensors('{}', 1), code: 'Q4204', offset: 10 },
  {
    what: 'tensors that overlap',
    bytes: safetensors({ a: f32(0, 8, [2]), b: f32(4, 12, [2]) }, 12),
    code: 'Q4234',
    entry: 'b',
  },
  {
    what: 'tensors that share all bytes',
    bytes: safetensors({ a: f32(0, 4, [1]), b: f32(0, 4, [1]) }, 4),
    code: 'Q4234',
  },
  {
    what: 'an empty tensor inside another',
    bytes: safetensors({ a: f32(0, 8, [2]), b: f32(4, 4, [0]) }, 8),
    code: 'Q4234',
    entry: 'b',
  },
  {
    what: 'a hole',
    bytes: safetensors({ a: f32(0, 4, [1]), b: f32(8, 12, [1]) }, 12),
    code: 'Q4235',
    entry: 'b',
  },
  { what: 'a hole at the start', bytes: safetensors({ a: f32(4, 8, [1]) }, 8), code: 'Q4235', entry: 'a' },
  { what: 'a path as a name', bytes: safetensors({ '../a': f32(0, 4, [1]) }, 4), code: 'Q4213', offset: 9 },
  { what: '__proto__', bytes: safetensors('{"__proto__":{}}'), code: 'Q4213', offset: 9, entry: '__proto__' },
  { what: 'an empty name', bytes: safetensors(`{"":{${a}}}`, 1), code: 'Q4208', offset: 9 },
];
