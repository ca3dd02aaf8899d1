/** y = a + b; y may be a or b. */
import { elementwise } from '../cost.js';
import type { Recorder } from '../recorder.js';
import type { OpSpec, Tensor } from '../types.js';

export const ADD: OpSpec = {
  name: 'add',
  signature: 'a: act[*], b: act[*] -> y: act[*]',
  inPlace: [
    [0, 0],
    [0, 1],
  ],
  cost: elementwise(1),
  gradient(tape, node) {
    const dy = tape.take(node.outputs[0]);
    if (!dy) return;
    tape.give(node.inputs[0], dy);
    tape.give(node.inputs[1], dy);
  },
};

export const add = (a: Tensor, b: Tensor, at: Recorder): Tensor => at.emitOne(ADD, [a, b]);
