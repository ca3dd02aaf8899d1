"""Checks exports with other people's readers: transformers for plain checkpoints, a few lines of its own for NVFP4.

    python3 test/reference/check_export.py OUT        (OUT as test/reference/make-exports.ts made it)

- Each plain checkpoint loads with AutoModelForCausalLM. With fp32 weights its logits are q4run's within 1e-5 relative L2;
  the bf16 and fp16 checkpoints are the fp32 one rounded once, bit for bit, and how far that moves the logits is printed.
- ModelOpt and compressed-tensors checkpoints, decoded as codes × block scale × global scale, are the fp32 weights bit for
  bit. A global scale that the exporter lists as having no exact divisor may be off in its last bit.
Shares no code with q4run. Needs torch, transformers and safetensors; runs on the CPU. Exit 1 when something does not hold.
"""
import json
import pathlib
import sys

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

BOUND = 1e-5
CODES = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=torch.float32)
failures = []


def check(ok, text):
    print(("ok   " if ok else "FAIL ") + text)
    if not ok:
        failures.append(text)


def tensors_of(folder):
    """Every tensor of a checkpoint, by way of its index where there is one."""
    index = folder / "model.safetensors.index.json"
    names = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.exists() else ["model.safetensors"]
    tensors = {}
    for name in names:
        with safe_open(folder / name, "pt") as file:
            tensors.update({key: file.get_tensor(key) for key in file.keys()})
    if index.exists():
        listed = set(json.loads(index.read_text())["weight_map"])
        check(listed == set(tensors), f"{folder.name}: the index lists the {len(tensors)} tensors of {len(names)} shards")
    return tensors


def same_bits(a, b):
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(
        a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def decode(codes, scales, factor):
    """[out, in/2] u8 and [out, in/16] e4m3 → f32 [out, in]: the low half of a byte is the even element."""
    values = CODES[torch.stack([codes & 15, codes >> 4], dim=-1).long()].reshape(codes.shape[0], -1)
    blocks = scales.float().repeat_interleave(16, dim=1)
    return values * blocks * factor


def logits_of(folder, ids, dtype):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()
    with torch.no_grad():
        return model(input_ids=ids).logits.double(), model


def distance(a, b):
    return ((a - b).norm() / b.norm()).item()


def check_plain(folder, ids, ours):
    exact = tensors_of(folder / "fp32")
    logits, model = logits_of(folder / "fp32", ids, torch.float32)
    check(distance(logits, ours) <= BOUND, f"fp32: logits within {distance(logits, ours):.2e} of q4run's (bound {BOUND:g})")
    tied = json.loads((folder / "fp32" / "config.json").read_text()).get("tie_word_embeddings", False)
    check(tied == ("lm_head.weight" not in exact), f"fp32: tie_word_embeddings is {tied}, as the tensors have it")
    held = dict(model.named_parameters())
    check(all(same_bits(tensor, held[name].data) for name, tensor in exact.items()),
          f"fp32: transformers holds all {len(exact)} tensors as they are in the file")
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        rounded = tensors_of(folder / name)
        check(all(same_bits(rounded[key], tensor.to(dtype)) for key, tensor in exact.items()) and
              rounded.keys() == exact.keys(), f"{name}: every tensor is the fp32 one rounded once")
        # Rounded weights, but fp32 arithmetic: what rounding the weights alone accounts for.
        wide, _ = logits_of(folder / name, ids, torch.float32)
        narrow, _ = logits_of(folder / name, ids, dtype)
        print(f"     {name}: rounding the weights moves the logits by {distance(wide, ours):.2e}, "
              f"{name} arithmetic on top to {distance(narrow, ours):.2e}")
    return exact


def check_nvfp4(folder, kind, exact):
    tensors = tensors_of(folder / kind)
    listed = {change["name"] for change in json.loads((folder / "changed.json").read_text())[kind]}
    config = json.loads((folder / kind / "config.json").read_text())["quantization_config"]
    check(config["quant_method"] == kind, f"{kind}: quant_method")
    suffix = ".weight_packed" if kind == "compressed-tensors" else ".weight_scale_2"
    modules = [name[: -len(suffix)] for name in tensors if name.endswith(suffix)]
    off = 0
    for module in modules:
        if kind == "modelopt":
            codes, factor = tensors[module + ".weight"], tensors[module + ".weight_scale_2"]
        else:
            codes = tensors[module + ".weight_packed"]
            factor = torch.ones(1) / tensors[module + ".weight_global_scale"]
        found, wanted = decode(codes, tensors[module + ".weight_scale"], factor), exact[module + ".weight"]
        if same_bits(found, wanted):
            continue
        off += 1
        close = torch.allclose(found, wanted, rtol=2**-22, atol=0)  # the scale's last bit, and the product's rounding
        check(module + ".weight" in listed and close, f"{kind}: {module} is off by no more than its global scale's last bit, and listed")
    check(bool(modules), f"{kind}: {len(modules) - off} of {len(modules)} matrices decode to q4run's bits, {off} are listed")
    plain = [name for name in exact if name in tensors and name.removesuffix(".weight") not in modules]
    check(all(same_bits(tensors[name].float(), exact[name]) for name in plain), f"{kind}: {len(plain)} plain tensors as they were")
    ignored = set(config["ignore"])
    linear = {name.removesuffix(".weight") for name in exact if "_proj" in name or name.startswith("lm_head")}
    check(linear - set(modules) <= ignored, f"{kind}: every plain linear module is ignored: {sorted(ignored)}")


def main():
    for folder in sorted(path for path in pathlib.Path(sys.argv[1]).iterdir() if path.is_dir()):
        print(f"--- {folder.name}")
        with safe_open(folder / "q4run.safetensors", "pt") as file:
            ids, ours = file.get_tensor("input_ids"), file.get_tensor("logits").double()
        exact = check_plain(folder, ids, ours)
        for kind in ("modelopt", "compressed-tensors"):
            check_nvfp4(folder, kind, exact)
    print("all holds" if not failures else f"{len(failures)} checks failed")
    sys.exit(1 if failures else 0)


main()
