/** The parameters of a model, as its wiring asks for them. */
import { Recorder } from '../graph/recorder.js';
import type { Tensor } from '../graph/types.js';
import { canonicalText, fnv1a64 } from '../graph/fingerprint.js';
import { linear } from '../graph/ops/linear.js';
import { apply, scope } from '../graph/combinators.js';
import type { Qwen3Config } from './config.js';
import { headWeight, qwen3, type Surroundings } from './qwen3.js';

export type ParameterKind = 'embedding' | 'projection' | 'norm' | 'head';

export interface ParameterTraits {
  readonly kind: ParameterKind;
  /** Projections that serving engines run as one, and that then need one global scale. */
  readonly group?: string | null;
}

export interface Parameter {
  /** As in Hugging Face files: model.layers.3.self_attn.q_proj.weight */
  readonly name: string;
  readonly shape: readonly number[];
  readonly kind: ParameterKind;
  /** Weight decay: matrices only. */
  readonly decay: boolean;
  /** `model.layers.3.self_attn.qkv`, `model.layers.3.mlp.gate_up`, or null. */
  readonly group: string | null;
  /** In the order of the wiring; keys random streams, so that it never depends on what is frozen. */
  readonly index: number;
}

interface Trace {
  readonly parameters: readonly Parameter[];
  readonly text: string;
}

/** Records the forward pass of one token without a cache, only to see what it asks for and does. */
function trace(config: Qwen3Config): Trace {
  const at = Recorder.start('cpu', 'f32');
  const input = (name: string): Tensor => at.stored({ name, dtype: 'i32', shape: [1], purpose: 'io' });
  const parameters = new Map<string, Parameter>();
  const around: Surroundings = {
    positions: input('positions'),
    attendFrom: input('attend_from'),
    batch: 1,
    cache: null,
    parameter: (name, shape, { kind, group = null }) => {
      if (!parameters.has(name))
        parameters.set(name, { name, shape, kind, decay: shape.length > 1, group, index: parameters.size });
      return at.stored({ name, dtype: 'f32', shape, purpose: 'weights' });
    },
  };
  const hidden = apply(input('ids'), qwen3(config, around), at);
  apply(hidden, scope('lm_head', linear(headWeight(config, around))), at);
  return { parameters: [...parameters.values()], text: canonicalText(at.finish('wiring')) };
}

/** Every parameter, in the order of the wiring; a tied head is the embedding and is not listed again. */
export const listParameters = (config: Qwen3Config): readonly Parameter[] => trace(config).parameters;

/** The wiring as text, one line an op; what the fingerprint is taken of. */
export const wiringText = (config: Qwen3Config): string => `qwen3 wiring 1\n${trace(config).text}`;

/** 16 hexadecimal digits, the same for all programs that compute the same function of the same parameters. */
export const wiringFingerprint = (config: Qwen3Config): string => fnv1a64(wiringText(config));
