#!/usr/bin/env python3
"""Trains SmolLM2-135M-Instruct for two steps on the quickstart's data and lets transformers load the export:
its tokenizer, chat template and weights must give the loss that our own evaluation of the same run logged, and the same
logits as our binary gives from the export.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

import tessera

PROMPTS = ["The capital of France is", "def fibonacci(n):\n    ", "Grüße aus Köln! 12 + 30 ="]


def script(name: str, *arguments: str) -> str:
    """What one of our scripts prints."""
    command = [tessera.ROOT / "scripts" / name, *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def document(tokenizer, messages: list[dict]) -> tuple[list[int], int]:
    """Token ids of one conversation of two turns and the position of the first token that bears loss."""
    prompt = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    context, response = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, whole[len(prompt) :]))
    if response[-1] != tokenizer.eos_token_id:
        response = [*response, tokenizer.eos_token_id]
    return context + response, len(context)


@torch.no_grad()
def mean_loss(export: Path, conversations: list[dict]) -> float:
    """Loss per loss token, with everything but the text taken from the export."""
    tokenizer = AutoTokenizer.from_pretrained(export)
    model = AutoModelForCausalLM.from_pretrained(export, dtype=torch.float32)
    total, count = 0.0, 0
    for conversation in conversations:
        ids, first = document(tokenizer, conversation["messages"])
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        targets = torch.tensor(ids[first:])
        total += torch.nn.functional.cross_entropy(logits[first - 1 : -1], targets, reduction="sum").item()
        count += len(targets)
    return total / count


@torch.no_grad()
def logit_difference(export: Path, prompt: str) -> float:
    """||ours - theirs|| / ||theirs|| over all logits after a prompt, both from the export."""
    tokenizer = AutoTokenizer.from_pretrained(export)
    model = AutoModelForCausalLM.from_pretrained(export, dtype=torch.float32)
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
    theirs = model(input_ids=ids, use_cache=False).logits[0, -1].double()
    ours = torch.empty_like(theirs)
    for token in tessera.logits(export, prompt, len(theirs)):
        ours[token["id"]] = token["logit"]
    return ((ours - theirs).norm() / theirs.norm()).item()


def main() -> int:
    logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        script("quickstart-data", str(folder))
        settings = {
            "model": script("fetch", "smollm2"),
            "train_data_path": str(folder / "train.jsonl"),
            "eval_data_path": str(folder / "eval.jsonl"),
            "task_type": "CHAT_COMPLETION",
            "training_duration": "2ba",
            "learning_rate": 1e-4,
            "context_length": 256,
            "global_train_batch_size": 2,
            "hf_save_precision": "fp32",
            "precision": "fp32",
            "devices": "cpu",
            "save_folder": str(folder / "runs"),
            "run_name": "export",
        }
        run = tessera.train(folder / "run.yaml", settings)
        conversations = [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()]
        export = tessera.export_folder(run)
        theirs = mean_loss(export, conversations)
        ours = tessera.metrics(run, "metrics/eval/LanguageCrossEntropy")[-1]
        logits = max(logit_difference(export, prompt) for prompt in PROMPTS)
    what = f"SmolLM2: our evaluation ({ours:.6f}), transformers on our export ({theirs:.6f})"
    good = tessera.report(what, abs(ours - theirs) / theirs, 1e-4)
    good &= tessera.report(f"SmolLM2: logits of its export, worst of {len(PROMPTS)} prompts", logits, 1e-4)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
