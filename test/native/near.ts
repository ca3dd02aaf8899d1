/** Bounded error: how float results are compared everywhere in the op tests. */
import * as assert from 'uvu/assert';

/** ‖actual − expected‖ ≤ bound · ‖expected‖ + floor · √n; `floor` is for results that cancel to nothing. */
export function near(
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
  bound: number,
  what: string,
  floor = 1e-7,
): void {
  assert.is(actual.length, expected.length, `${what}: number of elements`);
  let error = 0;
  let norm = 0;
  for (let i = 0; i < expected.length; i++) {
    error += (actual[i]! - expected[i]!) ** 2;
    norm += expected[i]! ** 2;
  }
  const allowed = bound * Math.sqrt(norm) + floor * Math.sqrt(expected.length);
  // The negation also catches NaN.
  if (!(Math.sqrt(error) <= allowed))
    assert.unreachable(
      `${what}: error ${Math.sqrt(error)} > ${allowed} (relative ${Math.sqrt(error / norm)})`,
    );
}

export function sameBits(actual: ArrayLike<number>, expected: ArrayLike<number>, what: string): void {
  assert.is(actual.length, expected.length, `${what}: number of elements`);
  for (let i = 0; i < expected.length; i++)
    if (!Object.is(actual[i], expected[i]))
      assert.unreachable(`${what}: element ${i} is ${actual[i]}, expected ${expected[i]}`);
}
