#!/usr/bin/env python3
"""PyTorch on the first GPU, for scripts/bench-gpu to stand beside: attention as in benches/gpu.rs, and training steps of a
Llama by transformers, compiled, bf16 autocast, fp32 weights, fused AdamW, one row a micro-batch, no padding.

  scripts/gpu_torch.py attention
  scripts/gpu_torch.py step CONFIG ROWS CONTEXT BATCHES [recompute]

`step` prints what runs, rows × tokens, tokens/s (median, least, most), MFU, and the GB allocated at most.
"""

import json
import statistics
import sys
import time
from pathlib import Path

import torch
from torch.nn.functional import scaled_dot_product_attention

TOKENS = 8192


def milliseconds(run, rounds: int = 20) -> float:
    """The median of single runs between two events, after three to warm up."""
    for _ in range(3):
        run()
    pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(rounds)]
    for start, end in pairs:
        start.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in pairs)


def attention() -> None:
    print(f"torch {torch.__version__}, scaled_dot_product_attention by two of its backends\n")
    print("| operator | size | µs | rate |\n|---|---|---:|---:|")
    for query, key_value, size, documents in [(32, 8, 64, 1), (32, 8, 64, 8), (32, 8, 128, 1)]:
        length = TOKENS // documents
        make = lambda heads: torch.randn(documents, heads, length, size, device="cuda", dtype=torch.bfloat16)
        q, k, v, gradient = make(query), make(key_value), make(key_value), make(query)
        for tensor in (q, k, v):
            tensor.requires_grad_()
        product = documents * length * length * query * size
        times: dict[str, tuple[float, float]] = {}
        for backend in ("FLASH_ATTENTION", "CUDNN_ATTENTION"):
            kinds = getattr(torch.nn.attention.SDPBackend, backend)
            try:
                with torch.nn.attention.sdpa_kernel(kinds):
                    run = lambda: scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
                    with torch.no_grad():
                        forward = milliseconds(run)
                    out = run()
                    backward = milliseconds(
                        lambda: torch.autograd.grad(out, (q, k, v), gradient, retain_graph=True)
                    )
                times[backend] = (forward, backward)
            except RuntimeError as error:
                print(f"{backend}: {str(error).splitlines()[0]}", file=sys.stderr)
        label = f"{documents} × {length} tokens, {query} heads of {size}"
        for backend, measured in times.items():
            for name, operations, taken in zip(("forward", "backward"), (2, 5), measured):
                rate = operations * product / taken / 1e9
                kind = backend.split("_")[0].lower()
                print(f"| attention {name}, torch, {kind} | {label} | {1000 * taken:.1f} | {rate:.0f} TFLOP/s |")


def step(path: str, rows: int, context: int, batches: int, recompute: bool) -> None:
    import transformers

    config = transformers.AutoConfig.for_model(**json.loads(Path(path).read_text()))
    torch.manual_seed(17)
    with torch.device("cuda"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    model.config.use_cache = False
    if recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    forward = torch.compile(lambda tokens: model(input_ids=tokens, labels=tokens).loss)

    def batch() -> float:
        tokens = torch.randint(config.vocab_size, (rows, context), device="cuda")
        for row in tokens.split(1):
            with torch.autocast("cuda", dtype=torch.bfloat16):
                loss = forward(row) / rows
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    for _ in range(2):
        batch()
    rates = []
    for _ in range(batches):
        start = time.perf_counter()
        batch()
        rates.append(rows * context / (time.perf_counter() - start))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    attended = 6 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * context
    mfu = statistics.median(rates) * (6 * parameters + attended) / 989.5e12
    peak = torch.cuda.max_memory_allocated() / 1e9
    kept = "recomputed" if recompute else "kept"
    print(
        f"| torch {torch.__version__}, compiled, blocks {kept} | {rows} × {context:,} | {statistics.median(rates):,.0f} "
        f"({min(rates):,.0f} … {max(rates):,.0f}) | {100 * mfu:.1f} % | {peak:.1f} |"
    )


if __name__ == "__main__":
    if sys.argv[1] == "attention":
        attention()
    else:
        _, _, path, rows, context, batches, *rest = sys.argv
        step(path, int(rows), int(context), int(batches), rest == ["recompute"])
