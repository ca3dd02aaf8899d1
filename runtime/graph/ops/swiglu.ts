/** y = silu(gate)·up, and its gradient. */
import { elementwise } from '../cost.js';
import type { Recorder } from '../recorder.js';
import type { OpSpec, Tensor } from '../types.js';

export const SWIGLU: OpSpec = {
  name: 'swiglu',
  signature: 'gate: act[N,I], up: act[N,I] -> y: act[N,I]',
  cost: elementwise(5),
  gradient(tape, node) {
    const [gate, up] = node.inputs;
    const dy = tape.take(node.outputs[0]);
    if (!dy || (!tape.needs(gate) && !tape.needs(up))) return;
    const [dgate, dup] = tape.at(node).emit(SWIGLU_BACKWARD, [dy, gate!, up!]);
    tape.give(gate, dgate!);
    tape.give(up, dup!);
  },
};

export const SWIGLU_BACKWARD: OpSpec = {
  name: 'swiglu_backward',
  signature: 'dy: act[N,I], gate: act[N,I], up: act[N,I] -> dgate: act[N,I], dup: act[N,I]',
  inPlace: [[0, 0]],
  cost: elementwise(10),
};

export const swiglu = (gate: Tensor, up: Tensor, at: Recorder): Tensor => at.emitOne(SWIGLU, [gate, up]);
