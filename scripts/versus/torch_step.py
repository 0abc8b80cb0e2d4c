"""Steps of PyTorch (transformers), in this process: prints tokens/s and losses as the last line, JSON.

  torch_step.py FOLDER STEPS THREADS [tuned] [compiled] [bf16] [recompute]

tuned: the fused AdamW and oneDNN products (float32 matmul precision 'medium'); compiled: torch.compile besides.
"""

import json
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from models import CONTEXT, END, ROWS, tokens

LEARNING_RATE = 1e-3


def train(folder: Path, steps: int, threads: int, options: set[str]) -> dict:
    tuned, mixed = "tuned" in options, "bf16" in options
    torch.set_num_threads(threads)
    if tuned:
        torch.set_float32_matmul_precision("medium")
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32, attn_implementation="sdpa")
    model.train()
    if "recompute" in options:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0, fused=tuned
    )
    ids = torch.tensor([*tokens(steps), END])
    # Targets are shifted over the whole text, so that a row's last position has one too.
    targets = torch.cat([ids[1:], torch.tensor([-100])]).view(steps, ROWS, CONTEXT)
    inputs = ids.view(steps, ROWS, CONTEXT)
    forward = torch.compile(model) if "compiled" in options else model
    losses, seconds = [], []
    for step in range(steps):
        started = time.perf_counter()
        step_targets = targets[step]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
            loss = forward(input_ids=inputs[step], labels=step_targets, shift_labels=step_targets, use_cache=False).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - started)
    return {"tokens_per_second": ROWS * CONTEXT * (steps - 1) / sum(seconds[1:]), "losses": losses}


if __name__ == "__main__":
    folder, steps, threads, *options = sys.argv[1:]
    print(json.dumps(train(Path(folder), int(steps), int(threads), set(options))))
