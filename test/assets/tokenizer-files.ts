/** tokenizer.json and tokenizer_config.json of the shipped model, as text, trained on the shipped corpus. */
import { countPreTokens, QWEN_PATTERN, trainBpe } from '../../runtime/text/train-bpe.js';

/** Entries of the vocabulary: 256 bytes, the merges, the specials. config.json says the same. */
export const VOCAB_SIZE = 3072;

/** In Qwen3's order; those of the second list are ordinary markers, which decoding does not hide. */
const SPECIAL = [
  '<|endoftext|>',
  '<|im_start|>',
  '<|im_end|>',
  '<|object_ref_start|>',
  '<|object_ref_end|>',
  '<|box_start|>',
  '<|box_end|>',
  '<|quad_start|>',
  '<|quad_end|>',
  '<|vision_start|>',
  '<|vision_end|>',
  '<|vision_pad|>',
  '<|image_pad|>',
  '<|video_pad|>',
];
const MARKERS = [
  '<tool_call>',
  '</tool_call>',
  '<|fim_prefix|>',
  '<|fim_middle|>',
  '<|fim_suffix|>',
  '<|fim_pad|>',
  '<|repo_name|>',
  '<|file_sep|>',
  '<tool_response>',
  '</tool_response>',
  '<think>',
  '</think>',
];

const CHAT_TEMPLATE = [
  '{%- for message in messages %}',
  "    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}",
  '{%- endfor %}',
  '{%- if add_generation_prompt %}',
  "    {{- '<|im_start|>assistant\\n' }}",
  '{%- endif %}',
].join('\n');

/** Every text of a data file: prompts, completions and messages. */
function* textsOf(jsonl: string): Iterable<string> {
  for (const line of jsonl.split('\n')) {
    if (line === '') continue;
    const row = JSON.parse(line) as {
      prompt?: string;
      completion?: string;
      messages?: { role: string; content: string }[];
    };
    if (row.messages) for (const { role, content } of row.messages) yield `${role}\n${content}`;
    else yield* [`user\n${row.prompt}`, `assistant\n${row.completion}`];
  }
}

function* textsOfAll(files: readonly string[]): Iterable<string> {
  for (const file of files) yield* textsOf(file);
}

/** @param corpus texts of the data files, in a fixed order */
export function tokenizerFiles(corpus: readonly string[]): Record<string, string> {
  const added = [...SPECIAL, ...MARKERS];
  const merges = VOCAB_SIZE - 256 - added.length;
  // Chinese tokens of at most two characters: whole clauses would be one token and mean nothing in another sentence.
  const bpe = trainBpe(countPreTokens(textsOfAll(corpus)), {
    merges,
    minCount: 2,
    maxAsciiBytes: 12,
    maxOtherBytes: 6,
  });
  if (bpe.merges.length !== merges) throw new Error(`the corpus yields only ${bpe.merges.length} merges`);
  const firstAdded = VOCAB_SIZE - added.length;
  const flags = { single_word: false, lstrip: false, rstrip: false, normalized: false };
  const describe = (content: string, i: number) => ({ content, ...flags, special: i < SPECIAL.length });
  const tokenizer = {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: added.map((content, i) => ({ id: firstAdded + i, ...describe(content, i) })),
    normalizer: { type: 'NFC' },
    pre_tokenizer: {
      type: 'Sequence',
      pretokenizers: [
        { type: 'Split', pattern: { Regex: QWEN_PATTERN }, behavior: 'Isolated', invert: false },
        { type: 'ByteLevel', add_prefix_space: false, trim_offsets: false, use_regex: false },
      ],
    },
    post_processor: { type: 'ByteLevel', add_prefix_space: false, trim_offsets: false, use_regex: false },
    decoder: { type: 'ByteLevel', add_prefix_space: false, trim_offsets: false, use_regex: false },
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: '',
      end_of_word_suffix: '',
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: false,
      vocab: bpe.vocab,
      merges: bpe.merges,
    },
  };
  const config = {
    add_bos_token: false,
    add_prefix_space: false,
    added_tokens_decoder: Object.fromEntries(
      added.map((content, i) => [String(firstAdded + i), describe(content, i)]),
    ),
    additional_special_tokens: SPECIAL.slice(1),
    bos_token: null,
    chat_template: CHAT_TEMPLATE,
    clean_up_tokenization_spaces: false,
    eos_token: '<|im_end|>',
    errors: 'replace',
    model_max_length: 2048,
    pad_token: '<|endoftext|>',
    split_special_tokens: false,
    tokenizer_class: 'Qwen2Tokenizer',
    unk_token: null,
  };
  return {
    'qwen3-tiny/tokenizer.json': onePerLine(tokenizer),
    'qwen3-tiny/tokenizer_config.json': JSON.stringify(config, null, 2) + '\n',
  };
}

/** JSON with one vocabulary entry and one merge a line, so that changes can be read. */
function onePerLine(tokenizer: { readonly model: { readonly merges: readonly unknown[] } }): string {
  const text = JSON.stringify(tokenizer, null, 1);
  return text.replace(/\[\n\s+("(?:[^"\\]|\\.)*"),\n\s+("(?:[^"\\]|\\.)*")\n\s+\]/g, '[$1, $2]') + '\n';
}
