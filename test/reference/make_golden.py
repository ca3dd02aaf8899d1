"""Makes a golden file with transformers (float32, eager attention) from a .dat: what parity-check compares with.

    python3 test/reference/make_golden.py MODEL_FOLDER OUT.safetensors [--batch 2] [--tokens 48] [--new 24]

MODEL_FOLDER holds model.dat and config.json. Reads the .dat and NVFP4 by itself, in a few lines, so that it shares no code
with q4run. Needs torch, transformers and safetensors.
"""
import argparse
import json
import math
import pathlib

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import Qwen3Config, Qwen3ForCausalLM

TYPES = {0: np.uint8, 5: np.float16, 6: np.float32, 100: np.uint8, 101: np.uint8}
CODES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def read_dat(path):
    data, at = path.read_bytes(), 0

    def number():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                return value

    tensors = {}
    for _ in range(number()):
        size = number()
        name = data[at : at + size].decode()
        at += size
        kind = number()
        shape = [number() for _ in range(number())]
        width = 2 if kind == 15 else np.dtype(TYPES[kind]).itemsize
        end = at + math.prod(shape) * width
        if kind == 15:
            bits = np.frombuffer(data[at:end], np.uint16).astype(np.uint32) << 16
            tensors[name] = bits.view(np.float32).reshape(shape)
        else:
            tensors[name] = np.frombuffer(data[at:end], TYPES[kind]).reshape(shape)
        at = end
    assert at == len(data)
    return tensors


def e4m3(bits):
    exponent, mantissa = (bits >> 3) & 15, bits & 7
    return np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent.astype(np.int32) - 7))


def weights(tensors):
    for name, values in tensors.items():
        if name.endswith(".qdata"):
            base = name[: -len(".qdata")]
            codes = np.stack([CODES[values & 15], CODES[values >> 4]], -1).reshape(values.shape[0], -1)
            scale = e4m3(tensors[base + ".scale"]).astype(np.float32)
            plain = codes.reshape(*scale.shape, 16) * scale[..., None]
            plain = plain.reshape(codes.shape) * tensors.get(base + ".global_scale", np.float32([1]))[0]
            yield base if base.endswith(".weight") else base + ".weight", torch.tensor(plain)
        elif not name.endswith((".scale", ".global_scale")):
            yield name, torch.tensor(values.astype(np.float32))


parser = argparse.ArgumentParser()
parser.add_argument("model", type=pathlib.Path)
parser.add_argument("out", type=pathlib.Path)
parser.add_argument("--batch", type=int, default=2)
parser.add_argument("--tokens", type=int, default=48)
parser.add_argument("--new", type=int, default=24)
args = parser.parse_args()

state = dict(weights(read_dat(args.model / "model.dat")))
config = Qwen3Config(**json.loads((args.model / "config.json").read_text()))
config._attn_implementation = "eager"
config.tie_word_embeddings = "lm_head.weight" not in state
model = Qwen3ForCausalLM(config).float().eval()
missing, unexpected = model.load_state_dict(state, strict=False)
assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)

torch.manual_seed(0)
ids = torch.randint(0, config.vocab_size, (args.batch, args.tokens))
before_norm = {}
model.model.norm.register_forward_pre_hook(lambda _, inputs: before_norm.update(last=inputs[0].detach()))
with torch.no_grad():
    result = model(input_ids=ids, output_hidden_states=True, use_cache=False)
    # transformers gives the last hidden state after the norm; the golden file holds it before.
    hidden = [*result.hidden_states[:-1], before_norm["last"]]
    greedy = ids[:1, :16]
    for _ in range(args.new):
        greedy = torch.cat([greedy, model(input_ids=greedy, use_cache=False).logits[:, -1:].argmax(-1)], 1)
golden = {"input_ids": ids, "logits": result.logits.float(), "greedy": greedy}
golden |= {f"hidden_states.{i}": h.float() for i, h in enumerate(hidden)}
save_file({name: tensor.contiguous() for name, tensor in golden.items()}, args.out)
print(f"{args.out}: {len(golden)} tensors, {config.num_hidden_layers} layers")
