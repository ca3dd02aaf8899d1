/** A model in use: its layout, the store that holds its tensors, and its text. What stages hand on. */
import type { FileType, Store } from '../engine/types.js';
import type { Activation } from '../graph/types.js';
import type { Qwen3Config } from '../models/config.js';
import type { Model, WeightStorage } from '../models/model.js';
import type { ModelText } from '../text/model-text.js';

/** How a parameter stands in the file that it came from; exports keep it. */
export interface Origin {
  readonly type: FileType;
  readonly storage: WeightStorage;
}

/** Stage value `weights`: the tensors of a file in device memory, under their Hugging Face names. */
export interface Weights {
  /** `tieWordEmbeddings` says what the file holds: with a head of its own it is false, whatever config.json says. */
  readonly config: Qwen3Config;
  /** config.json as read. */
  readonly configText: string;
  /** By parameter name, in file order. */
  readonly origin: ReadonlyMap<string, Origin>;
  readonly store: Store;
  readonly text: ModelText | null;
  /** Path of the `.dat`. */
  readonly path: string;
  dispose(): void;
}

/** Stage value `model`. */
export interface LoadedModel {
  readonly layout: Model;
  readonly configText: string;
  readonly origin: ReadonlyMap<string, Origin>;
  readonly store: Store;
  readonly activation: Activation;
  readonly text: ModelText | null;
  /** The `.dat` that the weights came from; null when they were made from a seed. */
  readonly path: string | null;
  dispose(): void;
}

/** Planned counterparts: what `plan` hands on, before anything is in memory. */
export interface PlannedWeights {
  readonly planned: true;
  readonly config: Qwen3Config;
  readonly storage: ReadonlyMap<string, WeightStorage>;
  /** Plans seldom need the tokenizer: it is read when it is asked for. */
  readonly readText: () => Promise<ModelText | null>;
}
export interface PlannedModel {
  readonly planned: true;
  readonly layout: Model;
  readonly activation: Activation;
  readonly readText: () => Promise<ModelText | null>;
}
