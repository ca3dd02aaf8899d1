"""The peer of `npm run bench:gpu`: transformers + torch.compile on the Qwen3-4B shape, random weights, on the same GPU.

    python3 test/reference/peer.py [train] [prefill] [decode]

Prints one line per figure: median of several runs after warm-up, device time by synchronising around the region.
bf16 weights and AdamW states (less memory traffic than fp32 masters, so the peer has the easier optimizer), SDPA.
"""
import json
import pathlib
import statistics
import sys
import time

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM, StaticCache

CONFIG = pathlib.Path(__file__).parent.parent / "fixtures" / "qwen3-4b.config.json"


def make_model():
    config = Qwen3Config(**json.loads(CONFIG.read_text()))
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    with torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16)
        model = Qwen3ForCausalLM(config)
    return model.bfloat16()


def timed(run, warmup, repeat):
    for _ in range(warmup):
        run()
    seconds = []
    for _ in range(repeat):
        torch.cuda.synchronize()
        began = time.perf_counter()
        run()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def bench_train(batch=4, tokens=2048):
    model = make_model().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    step = torch.compile(lambda ids: model(input_ids=ids, labels=ids).loss)

    def run():
        ids = torch.randint(0, model.config.vocab_size, (batch, tokens), device="cuda")
        step(ids).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    seconds = timed(run, warmup=3, repeat=5)
    peak = torch.cuda.max_memory_allocated() / 2**30
    print(f"peer train, compiled: {batch * tokens / seconds:.0f} tok/s, {peak:.1f} GiB", flush=True)


@torch.no_grad()
def bench_prefill(tokens=4096):
    model = make_model().eval()
    ids = torch.randint(0, model.config.vocab_size, (1, tokens), device="cuda")
    seconds = timed(lambda: model(input_ids=ids, use_cache=True, logits_to_keep=1), warmup=3, repeat=5)
    print(f"peer prefill of {tokens}: {tokens / seconds:.0f} tok/s", flush=True)


@torch.no_grad()
def bench_decode(context=200):
    model = make_model().eval()
    cache = StaticCache(config=model.config, max_cache_len=256)
    ids = torch.randint(0, model.config.vocab_size, (1, 1), device="cuda")
    step = torch.compile(
        lambda token, at: model(input_ids=token, past_key_values=cache, cache_position=at, use_cache=True).logits.argmax(-1),
        mode="reduce-overhead",
    )
    at = torch.zeros(1, dtype=torch.long, device="cuda")

    def run():
        step(ids, at)
        at.add_(1).remainder_(context)

    seconds = timed(run, warmup=20, repeat=100)
    print(f"peer decode, static cache, compiled: {1 / seconds:.0f} tok/s", flush=True)


wanted = sys.argv[1:] or ["prefill", "decode", "train"]
torch.set_float32_matmul_precision("high")
print(f"peer: torch {torch.__version__} on {torch.cuda.get_device_name()}", flush=True)
for name in wanted:
    {"train": bench_train, "prefill": bench_prefill, "decode": bench_decode}[name]()
    torch._dynamo.reset()
    torch.cuda.empty_cache()
