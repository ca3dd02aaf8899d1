/**
 * Functional operators over symbolic tensors. A wire is a function from tensors to tensors that records what it does;
 * wiring is built by composing wires and is applied once per program.
 */
import type { Recorder } from './recorder.js';
import { add } from './ops/add.js';
import type { Tensor } from './types.js';

export type Wire<A = Tensor, B = Tensor> = (input: A, at: Recorder) => B;

/** Composes wires, left to right. */
export function pipe<A, B>(f: Wire<A, B>): Wire<A, B>;
export function pipe<A, B, C>(f: Wire<A, B>, g: Wire<B, C>): Wire<A, C>;
export function pipe<A, B, C, D>(f: Wire<A, B>, g: Wire<B, C>, h: Wire<C, D>): Wire<A, D>;
export function pipe<A, B, C, D, E>(f: Wire<A, B>, g: Wire<B, C>, h: Wire<C, D>, i: Wire<D, E>): Wire<A, E>;
export function pipe(...wires: Wire<unknown, unknown>[]): Wire<unknown, unknown> {
  return (input, at) => wires.reduce((value, wire) => wire(value, at), input);
}

/** Applies a wire: the one place where recording happens from outside. */
export const apply = <A, B>(input: A, wire: Wire<A, B>, at: Recorder): B => wire(input, at);

/** Names everything inside; what the wire gives becomes the scope's result (see taps). */
export function scope<A>(name: string, wire: Wire<A, Tensor>): Wire<A, Tensor> {
  return (input, at) => {
    const inner = at.within(name);
    const output = wire(input, inner);
    inner.result(output);
    return output;
  };
}

/** x + wire(x); the sum is named. */
export const residual = (name: string, wire: Wire): Wire => {
  return (x, at) => {
    const branch = wire(x, at);
    return scope<readonly [Tensor, Tensor]>(name, ([a, b], inner) => add(a, b, inner))([x, branch], at);
  };
};

/** One input to several wires, in order. */
export function fanout<A, B, C>(f: Wire<A, B>, g: Wire<A, C>): Wire<A, readonly [B, C]>;
export function fanout<A, B, C, D>(f: Wire<A, B>, g: Wire<A, C>, h: Wire<A, D>): Wire<A, readonly [B, C, D]>;
export function fanout(...wires: Wire<unknown, unknown>[]): Wire<unknown, readonly unknown[]> {
  return (input, at) => wires.map((wire) => wire(input, at));
}

/** Several values into one: the counterpart of fanout. */
export const merge =
  <A extends readonly unknown[], B>(join: (...values: [...A, Recorder]) => B): Wire<A, B> =>
  (values, at) =>
    join(...([...values, at] as [...A, Recorder]));

/** The wires of layers 0 … count−1 in a row, each in the scope of its number. */
export const layers =
  (count: number, layer: (index: number) => Wire): Wire =>
  (input, at) => {
    let value = input;
    for (let index = 0; index < count; index++) value = scope(String(index), layer(index))(value, at);
    return value;
  };
