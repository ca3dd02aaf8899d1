/** What every program of a model starts from: a recorder, the model's weights, and its inputs in the store. */
import { Q4Error } from '../errors.js';
import type { DType } from '../program.js';
import { Recorder } from '../graph/recorder.js';
import type { Activation, DeviceKind, Tensor } from '../graph/types.js';
import type { Model } from './model.js';
import type { Surroundings } from './qwen3.js';

export interface ProgramOptions {
  readonly model: Model;
  readonly device: DeviceKind;
  /** Dtype of activations and their gradients. */
  readonly activation: Activation;
  /**
   * Put before the names of the program's own inputs, outputs and taps (`prefill/` → `prefill/in.ids`), so that programs
   * of different shapes stand side by side in one store. Default: nothing.
   */
  readonly prefix?: string | undefined;
}

/** Names the inputs and outputs of one program. */
export class Inputs {
  readonly at: Recorder;
  private readonly prefix: string;

  constructor(private readonly options: ProgramOptions) {
    this.at = Recorder.start(options.device, options.activation);
    this.prefix = options.prefix ?? '';
  }

  /** An input or output called `<prefix><name>`. */
  own(name: string, dtype: DType, shape: readonly number[]): Tensor {
    return this.shared(this.prefix + name, dtype, shape);
  }

  /** An input or output whose name other programs use as well. */
  shared(name: string, dtype: DType, shape: readonly number[]): Tensor {
    return this.at.stored({ name, dtype, shape, purpose: 'io' });
  }

  /** The compute weight of a parameter. */
  readonly parameter: Surroundings['parameter'] = (name) => {
    const parameter = this.options.model.parameters.find((candidate) => candidate.name === name);
    if (!parameter) throw new Q4Error('Q4510', `the model has no parameter ${name}`);
    return this.at.stored(parameter.weight);
  };
}
