"""Attention over 8,192 tokens: PyTorch's scaled_dot_product_attention on one document, beside ours on one and on several that are packed.

Ours is `cargo bench -p tessera-benches --bench attention`, which is run before and after torch's rounds; the better of the two counts for ours, as
the best of three goes of five rounds does for torch. fp32, 8 heads of 64, 4 for keys and values.

  attention.py THREADS
"""

import os
import statistics
import subprocess
import sys
import time

import torch

from processes import ROOT, table

TOKENS, HEADS, KEY_VALUE, SIZE = 8192, 8, 4, 64


def ours(threads: int) -> dict[int, tuple[float, float]]:
    """Milliseconds forward and backward, by the length of a document."""
    command = [os.environ.get("CARGO", "cargo"), "bench", "--quiet", "-p", "tessera-benches", "--bench", "attention"]
    environment = {**os.environ, "RAYON_NUM_THREADS": str(threads)}
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
    lines = [line.split("\t") for line in run.stdout.splitlines()[1:]]
    return {int(length): (float(forward), float(backward)) for length, forward, backward, _ in lines}


def torchs(rounds: int) -> tuple[float, float]:
    """Medians of milliseconds forward and backward, for one document."""
    q = torch.randn(1, HEADS, TOKENS, SIZE, requires_grad=True)
    k, v = (torch.randn(1, KEY_VALUE, TOKENS, SIZE, requires_grad=True) for _ in range(2))
    gradient = torch.randn(1, HEADS, TOKENS, SIZE)
    forward, backward = [], []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        output = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        middle = time.perf_counter()
        output.backward(gradient)
        forward.append(1e3 * (middle - began))
        backward.append(1e3 * (time.perf_counter() - middle))
    return statistics.median(forward[1:]), statistics.median(backward[1:])


def main() -> None:
    threads = int(sys.argv[1])
    torch.set_num_threads(threads)
    before = ours(threads)
    theirs = min((torchs(5) for _ in range(3)), key=sum)
    after = ours(threads)
    rows = [["torch, one document", *(f"{value:.0f}" for value in theirs), f"{sum(theirs):.0f}", "1.00", "–"]]
    for length in before:
        forward, backward = min(before[length], after[length], key=sum)
        both = forward + backward
        squares = TOKENS * length / 1e6
        rows.append(
            [f"ours, {TOKENS // length} × {length} tokens", f"{forward:.0f}", f"{backward:.0f}", f"{both:.0f}",
             f"{sum(theirs) / both:.2f}", f"{both / squares:.2f}"]
        )
    print(f"\nAttention over {TOKENS} tokens, threads: {threads}, load: {os.getloadavg()[1]:.1f}\n")
    print(table(["", "forward ms", "backward ms", "both ms", "speed ratio", "ms per 1e6 squared tokens"], rows))


if __name__ == "__main__":
    main()
