/**
 * 4-, 8- and 16-bit floats by their definitions: a code's value from its fields, and encoding as a search for the
 * nearest code, ties to the even one. Slow, and written without looking at the native codecs.
 */

export interface FloatFormat {
  readonly exponentBits: number;
  readonly mantissaBits: number;
  readonly bias: number;
  /** Codes of the largest finite magnitude; larger magnitudes saturate, or become infinity where the format has one. */
  readonly largest: number;
  readonly infinity: number | null;
  readonly nan: number | null;
}

export const BF16: FloatFormat = {
  exponentBits: 8,
  mantissaBits: 7,
  bias: 127,
  largest: 0x7f7f,
  infinity: 0x7f80,
  nan: 0x7fc0,
};
export const F16: FloatFormat = {
  exponentBits: 5,
  mantissaBits: 10,
  bias: 15,
  largest: 0x7bff,
  infinity: 0x7c00,
  nan: 0x7e00,
};
export const E4M3: FloatFormat = {
  exponentBits: 4,
  mantissaBits: 3,
  bias: 7,
  largest: 0x7e,
  infinity: null,
  nan: 0x7f,
};
export const E2M1: FloatFormat = {
  exponentBits: 2,
  mantissaBits: 1,
  bias: 1,
  largest: 7,
  infinity: null,
  nan: null,
};

/** The value of a finite, positive code. */
function magnitude(format: FloatFormat, code: number): number {
  const mantissa = code % 2 ** format.mantissaBits;
  const exponent = Math.floor(code / 2 ** format.mantissaBits);
  const fraction = mantissa / 2 ** format.mantissaBits;
  return exponent === 0 ? fraction * 2 ** (1 - format.bias) : (1 + fraction) * 2 ** (exponent - format.bias);
}

const signBit = (format: FloatFormat): number => 2 ** (format.exponentBits + format.mantissaBits);

export function decode(format: FloatFormat, code: number): number {
  const sign = signBit(format);
  const positive = code % sign;
  const value =
    positive <= format.largest
      ? magnitude(format, positive)
      : positive === format.infinity
        ? Infinity
        : Number.NaN;
  return code >= sign ? -value : value;
}

/** Nearest code, ties to the even one; the sign of zero is kept. */
export function encode(format: FloatFormat, value: number): number {
  const sign = value < 0 || Object.is(value, -0) ? signBit(format) : 0;
  if (Number.isNaN(value)) return format.nan ?? format.largest;
  const size = Math.abs(value);
  const last = magnitude(format, format.largest);
  if (size >= last) {
    // Half a step beyond the largest is where infinity begins; without infinity everything saturates.
    const step = last - magnitude(format, format.largest - 1);
    const overflows = format.infinity !== null && size >= last + step / 2;
    return sign + (overflows ? format.infinity! : format.largest);
  }
  let low = 0;
  let high = format.largest;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (magnitude(format, middle) <= size) low = middle;
    else high = middle;
  }
  const below = size - magnitude(format, low);
  const above = magnitude(format, high) - size;
  return sign + (below < above || (below === above && low % 2 === 0) ? low : high);
}
