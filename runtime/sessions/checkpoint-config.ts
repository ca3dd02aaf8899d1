/** config.json and its quantisation keys, as transformers, vLLM and TensorRT-LLM write and read them. */
import { Q4Error } from '../errors.js';
import { BLOCK } from '../program.js';
import type { QuantisedFormat } from './checkpoint-names.js';

type Json = Record<string, unknown>;

const isObject = (value: unknown): value is Json =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/** What a checkpoint says about its quantisation; null: plain. */
export function quantisedFormat(
  config: unknown,
  hfQuantConfig: unknown,
  file: string,
): QuantisedFormat | null {
  const own = isObject(config) ? (config['quantization_config'] ?? config['compression_config']) : undefined;
  const separate = isObject(hfQuantConfig) ? hfQuantConfig['quantization'] : undefined;
  const found = isObject(own) ? own : isObject(separate) ? { quant_method: 'modelopt', ...separate } : null;
  if (found === null) return null;
  const method = found['quant_method'] ?? ('quant_algo' in found ? 'modelopt' : undefined);
  const refuse = (key: string, expected: string): never => {
    throw new Q4Error('Q4285', `the checkpoint's quantisation is not NVFP4 as q4run reads it (${key})`, {
      file,
      entry: key,
      expected,
      found: JSON.stringify(found[key] ?? null),
      hint: 'import the unquantised checkpoint that it was made from',
    });
  };
  if (method === 'modelopt') {
    const algorithm = found['quant_algo'];
    if (algorithm !== undefined && algorithm !== 'NVFP4' && algorithm !== 'W4A16_NVFP4')
      refuse('quant_algo', 'NVFP4 or W4A16_NVFP4');
    if (found['group_size'] !== undefined && found['group_size'] !== BLOCK)
      refuse('group_size', String(BLOCK));
    return 'modelopt';
  }
  if (method === 'compressed-tensors') {
    if (found['format'] !== 'nvfp4-pack-quantized') refuse('format', 'nvfp4-pack-quantized');
    return 'compressed-tensors';
  }
  return refuse('quant_method', 'modelopt or compressed-tensors');
}

const text = (json: unknown): string => `${JSON.stringify(json, null, 2)}\n`;

export interface ConfigChanges {
  /** Element type of the plain tensors; null leaves the config's. */
  readonly dtype: 'float16' | 'bfloat16' | 'float32' | null;
  readonly tied: boolean;
  /** Replaces `quantization_config`; null removes it. */
  readonly quantization: object | null;
}

/** The config with what an import or export changed; all other keys stay as they were. */
export function changedConfig(configText: string, changes: ConfigChanges): string {
  const { quantization_config: _, compression_config: __, ...config } = JSON.parse(configText) as Json;
  if (config['tie_word_embeddings'] !== undefined || changes.tied)
    config['tie_word_embeddings'] = changes.tied;
  config['architectures'] ??= ['Qwen3ForCausalLM'];
  if (changes.dtype !== null) {
    const key = 'dtype' in config ? 'dtype' : 'torch_dtype';
    config[key] = changes.dtype;
  }
  if (changes.quantization !== null) config['quantization_config'] = changes.quantization;
  return text(config);
}

export interface QuantisationFacts {
  /** Activations are quantised too: every matrix has a scale for them. */
  readonly activations: boolean;
  /** The cache is FP8: k_scale and v_scale are there. */
  readonly fp8Cache: boolean;
  /** Linear modules that are not quantised, e.g. lm_head. */
  readonly plainModules: readonly string[];
}

const PRODUCER = { name: 'modelopt', version: '0.0.0+q4run' };

/** hf_quant_config.json. vLLM refuses one without group_size, kv_cache_quant_algo or exclude_modules. */
export const modelOptQuantConfig = (facts: QuantisationFacts): string =>
  text({
    producer: PRODUCER,
    quantization: {
      quant_algo: facts.activations ? 'NVFP4' : 'W4A16_NVFP4',
      kv_cache_quant_algo: facts.fp8Cache ? 'FP8' : null,
      group_size: BLOCK,
      exclude_modules: facts.plainModules,
    },
  });

/** The same as `quantization_config` of config.json (modelopt/torch/export/convert_hf_config.py). */
export function modelOptConfig(facts: QuantisationFacts): object {
  const scheme = { dynamic: false, num_bits: 4, type: 'float', group_size: BLOCK };
  return {
    config_groups: {
      group_0: {
        ...(facts.activations && { input_activations: scheme }),
        weights: scheme,
        targets: ['Linear'],
      },
    },
    ignore: facts.plainModules,
    quant_algo: facts.activations ? 'NVFP4' : 'W4A16_NVFP4',
    ...(facts.fp8Cache && { kv_cache_scheme: { dynamic: false, num_bits: 8, type: 'float' } }),
    producer: PRODUCER,
    quant_method: 'modelopt',
  };
}

/** `quantization_config` of compressed-tensors: the schemes NVFP4 and NVFP4A16 of quantization/quant_scheme.py. */
export function compressedTensorsConfig(facts: QuantisationFacts): object {
  const scheme = {
    actorder: null,
    block_structure: null,
    group_size: BLOCK,
    num_bits: 4,
    observer_kwargs: {},
    scale_dtype: 'torch.float8_e4m3fn',
    strategy: 'tensor_group',
    symmetric: true,
    type: 'float',
    zp_dtype: 'torch.float8_e4m3fn',
  };
  return {
    config_groups: {
      group_0: {
        format: 'nvfp4-pack-quantized',
        input_activations: facts.activations
          ? { ...scheme, dynamic: 'local', observer: 'static_minmax' }
          : null,
        output_activations: null,
        targets: ['Linear'],
        weights: { ...scheme, dynamic: false, observer: 'memoryless_minmax' },
      },
    },
    format: 'nvfp4-pack-quantized',
    global_compression_ratio: null,
    ignore: facts.plainModules,
    kv_cache_scheme: null,
    quant_method: 'compressed-tensors',
    quantization_status: 'compressed',
  };
}
