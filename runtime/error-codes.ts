/**
 * Every error code: the exit code it leads to, a title, and what `q4run explain` says. doc/errors.md is made from this
 * table. Ranges: 40 command line · 41 pipeline file · 42 weight, config and tokenizer files · 43 text and data ·
 * 44 device, memory, disk · 45 programs and stages · 46 gates · 47 worker and signals · 48 divergence · 49 bugs.
 */
export interface CodeEntry {
  readonly exit: number;
  readonly title: string;
  readonly explain: string;
}

const entry = (exit: number, title: string, explain: string): CodeEntry => ({ exit, title, explain });

export const ERROR_CODES = {
  Q4001: entry(
    2,
    'unknown command or flag',
    'The command line holds a word or flag that q4run does not know. `q4run help` lists them all.',
  ),
  Q4002: entry(
    2,
    'wrong argument',
    'A flag lacks its value, has a value it cannot take, or an argument is missing. `q4run help COMMAND` shows the form.',
  ),
  Q4003: entry(
    2,
    'no such file',
    'The file named on the command line does not exist or cannot be read. Paths there are relative to the current directory.',
  ),
  Q4004: entry(
    2,
    'no such stage',
    'A stage named on the command line (--only, --from, --until, why, graph, preview) is not in the pipeline.',
  ),
  Q4005: entry(
    2,
    'the run directory belongs to another configuration',
    '--run-dir names a directory that holds a run with other settings. Continue it with the settings it was started with, choose another directory, or start anew in it with --fresh.',
  ),
  Q4006: entry(
    2,
    'the run directory is in use',
    'Another q4run process works in this run directory. Wait for it, stop it, or choose another directory. A lock left by a process that no longer lives is removed by itself.',
  ),
  Q4101: entry(
    3,
    'YAML syntax',
    'The file is not well-formed YAML 1.2: indentation, quotes, brackets, tabs. The message points at the place where the parser gave up; the mistake is there or just before.',
  ),
  Q4102: entry(
    3,
    'duplicate key',
    'A map holds the same key twice, so one of the values would be lost. Remove one of them.',
  ),
  Q4103: entry(
    3,
    'unknown key',
    'The map has no such key. Keys are snake_case; the message names the nearest known one. Keys that start with x- are free and read by nothing.',
  ),
  Q4104: entry(
    3,
    'wrong type',
    'The value has another type than the key needs. YAML 1.2 reads on, yes, no and 1_000 as text; quotes make a number text.',
  ),
  Q4105: entry(
    3,
    'out of range',
    'The value has the right type but lies outside what the key allows: too small, too large, too short, of the wrong form.',
  ),
  Q4106: entry(
    3,
    'not one of the choices',
    'The key takes one of a few words, and this is none of them. The message lists them and names the nearest.',
  ),
  Q4107: entry(3, 'missing key', 'A required key is not there. The message says what it means.'),
  Q4108: entry(
    3,
    'keys that exclude each other',
    'Of these keys exactly one must be given, such as steps or epochs.',
  ),
  Q4109: entry(
    3,
    'bad alias',
    'An alias (*name) has no anchor (&name) before it, refers to the node it stands in, or would expand to an unreasonable size.',
  ),
  Q4110: entry(
    3,
    'unresolved reference',
    'A ${...} in a value cannot be resolved: an unknown variable, an environment variable that is not set and has no default (${env.NAME:-default}), a cycle, or an output of a stage that does not run before. Write $${ for a literal ${.',
  ),
  Q4111: entry(
    3,
    'bad extends or include',
    'A file named in extends or include is missing, includes itself, or defines differently what another included file defines.',
  ),
  Q4112: entry(
    3,
    'duplicate stage id',
    'Two stages have the same id. Ids are how needs, --set and ${stages.ID...} refer to a stage, so each is given once.',
  ),
  Q4113: entry(
    3,
    'bad needs',
    'A stage needs itself, needs a stage that is not in the pipeline, or stages need each other in a circle.',
  ),
  Q4114: entry(
    3,
    'a stage lacks its input',
    'A stage takes something (weights, a model, a checkpoint) that none of the stages it needs gives. Add a stage that gives it to its needs.',
  ),
  Q4115: entry(
    3,
    'unsupported version',
    'The pipeline file is written for another version of the format. This q4run reads version 1.',
  ),
  Q4116: entry(
    3,
    'not in this version',
    'The setting exists, but this version of q4run does not do it yet. The message says what to use instead.',
  ),
  Q4201: entry(
    4,
    'cannot open a weight file',
    'A weight file (.dat or safetensors) is not there or may not be read. Paths in a pipeline are relative to the file that they are written in.',
  ),
  Q4202: entry(
    4,
    'not a regular file',
    'Weights are read from and written to regular files. The path names a directory, a pipe, a socket or a device.',
  ),
  Q4203: entry(
    4,
    'weight file cut short',
    'The file ends inside a header. It was cut short while it was copied or downloaded: get it again, and compare its size or checksum with the original.',
  ),
  Q4204: entry(
    4,
    'trailing bytes',
    'After the last entry there are bytes that belong to no tensor. The count of entries is wrong, or something was appended to the file.',
  ),
  Q4205: entry(
    4,
    'cannot read a weight file',
    'The operating system reported an error while the file was read: a failing disk, or a network file system that went away.',
  ),
  Q4206: entry(
    4,
    'number too large',
    'A number in a .dat header is longer than 10 bytes or wider than 64 bits. The file is damaged, or no .dat weight file.',
  ),
  Q4207: entry(
    4,
    'impossible number of entries',
    'The file claims more entries than can fit in its bytes, or more than 1,048,576. It was cut short, or is no .dat weight file.',
  ),
  Q4208: entry(
    4,
    'impossible name length',
    'The name of an entry must have 1 to 1,024 bytes. The file is damaged just before the place that the message names.',
  ),
  Q4209: entry(
    4,
    'too many dimensions',
    'A tensor has more than 8 dimensions. The file is damaged, or no weight file.',
  ),
  Q4210: entry(
    4,
    'tensor larger than the file',
    'The shape of a tensor asks for more bytes than the file still has. It was cut short, also if the tensor is not needed: get it again, and compare its size or checksum.',
  ),
  Q4211: entry(
    4,
    'tensor size overflows',
    'The dimensions of a tensor multiply to more than any file can hold, or one of them is above 2^53. The file is damaged, or made to mislead.',
  ),
  Q4212: entry(
    4,
    'name is not UTF-8',
    'The name of an entry, or metadata, is not valid UTF-8. The file is damaged, or was written by a tool that counts characters instead of bytes.',
  ),
  Q4213: entry(
    4,
    'name not allowed',
    'The name of an entry holds a control character, a slash, an empty part between dots, or the part __proto__. Names end up in messages, keys and file names, so they must be plain dotted names.',
  ),
  Q4214: entry(
    4,
    'stored twice',
    'Two entries have the same name, or one tensor stands in the file both plain and quantised. Which of them counts would be a guess: keep one.',
  ),
  Q4215: entry(
    4,
    'unknown element type',
    'The file uses an element type that q4run does not know. Write the tensor as fp16, bf16 or fp32, or as codes and scales.',
  ),
  Q4216: entry(
    4,
    'codes and scales are not together',
    'A quantised tensor is stored as X.qdata (two 4-bit codes a byte) and X.scale (one E4M3 scale for 16 values). One of them is missing: the export was incomplete.',
  ),
  Q4217: entry(
    4,
    'codes and scales do not match',
    'For codes of shape [out, in/2] the block scales must be E4M3 of shape [out, in/16], and the global scale fp32 of shape [1].',
  ),
  Q4218: entry(
    4,
    'inputs are no multiple of 16',
    'NVFP4 blocks have 16 values along the inputs. A matrix whose inputs are no multiple of 16 cannot be stored this way: pad it, or keep it unquantised.',
  ),
  Q4219: entry(
    4,
    'bad scale',
    'A block scale is NaN or negative, or a global scale is not finite or negative. The file is damaged, or its scales are in another layout than row-major E4M3FN.',
  ),
  Q4220: entry(
    4,
    'a weight is not finite',
    'A plain tensor holds NaN or infinity. The model diverged before it was saved, or the file is damaged. It can be allowed where the stage has a setting for it.',
  ),
  Q4221: entry(
    4,
    'file changed while it was read',
    'Size or modification time of the file changed between checking and the end of reading. Another process wrote to it: wait until that is done and start again.',
  ),
  Q4222: entry(
    4,
    'number not in its shortest form',
    'A number in a .dat header is written with needless zero bytes. No writer does that: the file is damaged, or made to mislead.',
  ),
  Q4224: entry(
    4,
    'shape does not fit',
    'An entry of a file and the tensor that it should fill have different shapes. The file and the config belong to different models.',
  ),
  Q4225: entry(
    4,
    'type does not fit',
    'An entry has an element type that cannot become that of the tensor it should fill, for example whole numbers where weights are expected.',
  ),
  Q4226: entry(
    4,
    'value does not fit the type',
    'A value is finite in its source and would become infinite, or wrap around, in the type it is converted to (fp16 ends at 65,504). Use bf16 or fp32 for this tensor.',
  ),
  Q4227: entry(
    1,
    'impossible file request',
    'The native file code was called with data that contradicts itself. This is a bug in q4run: please report it with the events.jsonl of the run.',
  ),
  Q4228: entry(
    4,
    'no such entry',
    'The file has no entry of that name. `q4run inspect FILE` lists what it holds.',
  ),
  Q4230: entry(
    4,
    'impossible safetensors header',
    'The first 8 bytes of a safetensors file are the length of its header: 2 bytes to 100 MB. This file is something else, or its header is too large: write several shards.',
  ),
  Q4231: entry(
    4,
    'malformed safetensors header',
    'The header of a safetensors file must be a JSON object whose members have exactly dtype, shape and data_offsets. The message names the byte. The file is damaged, or no safetensors file.',
  ),
  Q4233: entry(
    4,
    'offsets do not match the shape',
    'The data_offsets of a tensor span another number of bytes than its dtype and shape need. The file is damaged.',
  ),
  Q4234: entry(
    4,
    'tensors overlap',
    'Two tensors of a safetensors file claim the same bytes. The file is damaged, or made to mislead.',
  ),
  Q4235: entry(
    4,
    'hole between tensors',
    'Some bytes of a safetensors file belong to no tensor. The format does not allow that, because anything could hide there.',
  ),
  Q4241: entry(
    1,
    'written file reads back differently',
    'A file that was just written was read back with the reader and differs. It was not put in place. The disk may be failing; if not, this is a bug in q4run: please report it.',
  ),
  Q4260: entry(
    4,
    'not valid JSON',
    'A tokenizer file is not JSON. The message names line and column, what was expected there and what was found.',
  ),
  Q4261: entry(
    4,
    'malformed tokenizer',
    'tokenizer.json or tokenizer_config.json lacks a part (model, vocab, merges), or a part is not what it must be: an id that is no number or is taken twice, a merge that joins unknown tokens, an added token without content. Take the files again from where the model comes from.',
  ),
  Q4262: entry(
    4,
    'unsupported tokenizer',
    'The tokenizer asks for something that q4run does not do, which the message names. q4run reads byte-level BPE tokenizers as Qwen2 and Qwen3 have them; a tokenizer that is nearly right would give a model that is quietly wrong.',
  ),
  Q4263: entry(
    4,
    'tokenizer does not fit the model',
    'The tokenizer has ids beyond the vocab_size of config.json. Model and tokenizer do not belong together.',
  ),
  Q4271: entry(
    4,
    'invalid model config',
    'A value of config.json has the wrong type or does not fit the others: widths, heads and head_dim must agree. All problems of the file are listed together.',
  ),
  Q4272: entry(
    4,
    'missing model config key',
    'config.json lacks a key that the wiring needs. Nothing is guessed: a wrong width or RoPE base would give a model that only looks right.',
  ),
  Q4273: entry(
    4,
    'unsupported model feature',
    'config.json asks for something that q4run does not compute (sliding window, mixture of experts, scaled RoPE, biases, another activation). It is refused, not ignored, as the answers would be wrong.',
  ),
  Q4274: entry(
    4,
    'unsupported model type',
    'config.json describes another architecture. q4run runs dense Qwen3 models: model_type qwen3, architecture Qwen3ForCausalLM.',
  ),
  Q4275: entry(
    4,
    'config.json is not JSON',
    "The model's config.json is not valid JSON. The message names line and column, what was expected there and what was found.",
  ),
  Q4281: entry(
    4,
    'weights missing',
    'The weight file lacks parameters that the config asks for; the message lists them. Most often the config.json belongs to another model (number of layers, tied or separate head).',
  ),
  Q4282: entry(
    4,
    'unexpected weights',
    'The weight file holds entries that the model does not use; the message lists them. Most often the config.json belongs to another model. Set strict: false on load-dat to ignore them.',
  ),
  Q4283: entry(
    4,
    'weight does not match the config',
    'The element type or shape of an entry is not what the config asks for. Most often the config.json belongs to another model.',
  ),
  Q4284: entry(
    4,
    'shard index contradicts its shards',
    'model.safetensors.index.json names a file outside its directory, or a shard does not hold exactly the tensors that the index says. Download the files again; every shard and the index must come from the same checkpoint.',
  ),
  Q4285: entry(
    4,
    'quantised checkpoint of another kind',
    'The checkpoint is quantised in a form that q4run does not read. It takes NVFP4 of ModelOpt (quant_algo NVFP4 or W4A16_NVFP4) and of compressed-tensors (format nvfp4-pack-quantized), with blocks of 16; anything else must be imported from its unquantised original.',
  ),
  Q4286: entry(
    4,
    'global scale in the wrong direction',
    'ModelOpt stores the global scale of a matrix as a multiplier (far below 1), compressed-tensors as a divisor (far above 1). This one has the magnitude of the other: the file was converted without taking the reciprocal, or its tensors carry the names of the other format.',
  ),
  Q4287: entry(
    4,
    'no checkpoint here',
    'import-weights looks for config.json and model.safetensors, or model.safetensors.index.json with its shards, in a directory; it also takes a .safetensors or .dat file with a config.json beside it.',
  ),
  Q4301: entry(
    4,
    'no chat template',
    'The model has no chat template (chat_template in tokenizer_config.json, or chat_template.jinja), so messages cannot be turned into a prompt. Train on `text`, or add the template of the model.',
  ),
  Q4302: entry(
    4,
    'chat template cannot be read',
    'The chat template is not valid Jinja, is too large, or uses the clock. The message says where.',
  ),
  Q4303: entry(
    5,
    'chat template failed',
    'The chat template did not accept these messages; the message is its own. Often the roles do not alternate as the template wants.',
  ),
  Q4304: entry(
    5,
    'chat template exceeded its limits',
    'Rendering took too many steps or made too much text. Templates come with models from elsewhere, so they run within limits.',
  ),
  Q4305: entry(
    5,
    'assistant turns cannot be told apart',
    "To train on the assistant's tokens only, the prompt before each assistant turn must be the beginning of the whole text, and each turn must end with an end-of-turn token. This template breaks that: use train_on: all, or another template.",
  ),
  Q4310: entry(
    4,
    'data line is not JSON',
    'A line of a .jsonl file is not JSON. The message names line and column.',
  ),
  Q4311: entry(
    4,
    'data line has the wrong form',
    'A line of a data file lacks what its format needs, or a value has the wrong type. Formats: {"messages": [{"role", "content"}]}, {"prompt", "completion"}, {"text"}, {"input_ids", "labels"}; .tsv: prompt, one tab, target.',
  ),
  Q4312: entry(
    4,
    'mixed data formats',
    'One file holds lines of several formats. Put each format in its own file and list the files.',
  ),
  Q4313: entry(
    4,
    'sample with no trainable token',
    'No token of this sample counts towards the loss: there is no assistant turn, its label are all -100, or the sample was cut before the answer began. Raise seq_len or remove the line.',
  ),
  Q4314: entry(
    4,
    'token id outside the vocabulary',
    'input_ids must be whole numbers from 0 to vocab_size - 1, labels the same or -100.',
  ),
  Q4315: entry(
    4,
    'no data',
    'The data file holds no sample, or holding out a share for evaluation leaves none.',
  ),
  Q4316: entry(
    4,
    'unknown data format',
    'The format cannot be told from the name and the first line. Name it with `format:`.',
  ),
  Q4317: entry(
    4,
    'text without a tokenizer',
    'The model was loaded without a tokenizer, so it takes and gives token ids only. Give load-dat the key tokenizer, or train on input_ids.',
  ),
  Q4318: entry(4, 'weights of a data mix', 'Either every source of a mix has a weight, or none has.'),
  Q4401: entry(
    4,
    'out of memory',
    'The device (or, on the CPU, the machine) has less free memory than the plan needs. The message names what was asked and what is free. Lower batch_size or seq_len, set recompute: block, or use masters: bf16.',
  ),
  Q4402: entry(
    4,
    'no usable CUDA device',
    'runtime.device asks for CUDA, but the build has none or the machine offers no usable GPU. q4run never falls back to the CPU silently: set runtime.device: cpu or auto, or install the driver. `q4run doctor` says what is missing.',
  ),
  Q4403: entry(
    4,
    'cuBLASLt is missing',
    'The CUDA backend multiplies with cuBLASLt, which comes with the CUDA 13 toolkit (libcublasLt.so.13). It was found neither on the library path nor in /usr/local/cuda. Install the libcublas package of the toolkit, put its directory on LD_LIBRARY_PATH, or set runtime.device: cpu.',
  ),
  Q4404: entry(
    4,
    'native addon does not load',
    'The compiled part of q4run is missing or was built for another machine. Run `npm run build:native` in the package; `q4run doctor` shows what was found.',
  ),
  Q4405: entry(
    4,
    'over the memory limit',
    'The plan needs more device memory than memory.limit_gib of the train stage allows. Nothing was allocated. Lower batch_size or seq_len, set recompute: block, or raise the limit.',
  ),
  Q4411: entry(
    4,
    'input missing',
    'A file or directory that the pipeline reads is not there or cannot be read. Paths in a pipeline are relative to the file that they are written in.',
  ),
  Q4412: entry(
    4,
    'not enough disk space',
    'What the run would write (checkpoints, exports) does not fit on the disk of the run directory. Free space, keep fewer checkpoints, or choose another place with --run-dir.',
  ),
  Q4413: entry(
    4,
    'cannot write',
    'A directory or file that the run must write cannot be made or written: permissions, a read-only or full disk.',
  ),
  Q4414: entry(
    4,
    'damaged checkpoint',
    'A checkpoint directory has no valid manifest, or a file in it does not match its checksum. It is passed over; the newest healthy one is used.',
  ),
  Q4501: entry(5, 'cancelled', 'A program was cancelled before it ended.'),
  Q4502: entry(
    5,
    'stage parameters do not fit the model',
    'A parameter of the stage is well-formed, but does not fit this model or what the stage was given; the message says which and what to do.',
  ),
  Q4503: entry(
    5,
    'checkpoint does not fit',
    'The checkpoint in the run directory belongs to another model or to a run with other parameters. Start anew with --fresh, or give another --run-dir.',
  ),
  Q4504: entry(
    5,
    'no room in the cache',
    'A prompt is as long as the KV cache or longer. Raise cache.capacity (up to max_position_embeddings of the model) or shorten the prompt.',
  ),
  Q4505: entry(
    5,
    'nothing to ask with',
    'The stage has no prompts, a prompt has no tokens, or the model was loaded without a tokenizer. Set prompts or messages, and tokenizer on load-dat.',
  ),
  Q4506: entry(
    4,
    'unusable golden file',
    'A golden file must hold input_ids int64 [B,T], logits f32 [B,T,V] and hidden_states.0 … hidden_states.L f32 [B,T,H] of this model; see formats in doc/. The message names what is missing or does not fit.',
  ),
  Q4507: entry(
    5,
    'cannot be written like this',
    'The format that was asked for cannot hold this model as it is, or a name pattern matches nothing. The message says what stands in the way and which setting changes it.',
  ),
  Q4510: entry(
    1,
    'invalid program',
    'A program handed to the native runtime names an unknown op or dtype, or its shapes do not match the op. Programs are made by q4run itself, so this is a bug: please report it with the output of `q4run graph`.',
  ),
  Q4511: entry(
    1,
    'unknown tensor',
    'A program or stage used a tensor that the store does not hold (or holds already, or with another type). This is a bug in q4run: please report it.',
  ),
  Q4512: entry(
    5,
    'operation not supported here',
    'The device cannot run this op with this element type or shape. On the CPU use precision: fp32.',
  ),
  Q4513: entry(
    1,
    'device busy',
    'Something touched device memory while a program or a file was using it. This is a bug in q4run: please report it.',
  ),
  Q4514: entry(
    1,
    'invalid native handle',
    'A native object was used after it was disposed, or with an argument of the wrong kind. This is a bug in q4run: please report it.',
  ),
  Q4515: entry(
    5,
    'no such scope',
    'A tap names a part of the model that the program does not have. Scopes are Hugging Face module names, such as model.layers.3 or model.layers.3.self_attn.o_proj; * stands for any characters.',
  ),
  Q4601: entry(
    6,
    'parity does not hold',
    'The gate said no: a figure is beyond its bound. The message names the figures and the first layer and op that differ. Until it holds, the model must not ship.',
  ),
  Q4602: entry(
    6,
    'answers not as expected',
    'An answer did not match what the pipeline expects under expect. The message lists every answer that failed and the rule that it broke.',
  ),
  Q4701: entry(
    7,
    'device fault',
    'The GPU reported an error while running a program. The run cannot go on in this process; the last checkpoint is kept.',
  ),
  Q4702: entry(
    7,
    'the worker crashed',
    'The process that ran the pipeline was ended by a signal or without a word. The message names the last checkpoint; the same command continues from it. Please report it with events.jsonl.',
  ),
  Q4703: entry(
    8,
    'stopped by the memory guard',
    'The machine was running out of memory, so the run saved a checkpoint and stopped before the system would have killed it. Free memory, make the run smaller, or lower runtime.host_reserve_mib; the same command continues.',
  ),
  Q4704: entry(
    130,
    'interrupted',
    'Ctrl-C. What was running saved its state first; the same command continues from there.',
  ),
  Q4705: entry(
    143,
    'terminated',
    'SIGTERM. What was running saved its state first; the same command continues from there.',
  ),
  Q4801: entry(
    9,
    'training diverged',
    'The loss or the gradient norm was not a finite number. The step was not applied, and the last healthy checkpoint is kept (pinned). Lower learning_rate, add warm-up, or clip with max_grad_norm.',
  ),
  Q4900: entry(
    1,
    'internal error',
    'Something happened that q4run did not expect. Please report it with the events.jsonl of the run.',
  ),
} as const satisfies Record<string, CodeEntry>;

export type ErrorCode = keyof typeof ERROR_CODES;
