#!/usr/bin/env python3
"""Lets transformers load what `tessera train` exports.

SmolLM2-135M-Instruct, trained for two steps on the quickstart's data: tokenizer, chat template and weights of its export must
give the loss that our own evaluation of the same run logged, and the same logits as our binary gives from the export. A
Mixtral whose experts are all copies of the export's feed-forward layers (upcycle.py) must give these logits too.

A tiny model of every family, trained for two steps: its export has the names, shapes and config of what went in, nothing is
missing or unexpected, and transformers and our binary get the same logits from it. A DBRX goes in with the RoPE base where the
hub's config has it and comes out with it where transformers looks as well.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

import tessera
import tiny
from tiny import oracle
from trajectory import write_model
from upcycle import upcycle

PROMPTS = ["The capital of France is", "def fibonacci(n):\n    ", "Grüße aus Köln! 12 + 30 ="]
TINY_CASES = ["tied_gqa", "bias", "sliding_window", "mixtral", "mixtral_window", "mixtral_fused", "dbrx", "dbrx_euclidean"]
TINY_PROMPTS = ["a", "abc;def,ghi", "What(is)it?{that+you=see[here]}"]


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
    model = oracle.from_folder(export)
    total, count = 0.0, 0
    for conversation in conversations:
        ids, first = document(tokenizer, conversation["messages"])
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        targets = torch.tensor(ids[first:])
        total += torch.nn.functional.cross_entropy(logits[first - 1 : -1], targets, reduction="sum").item()
        count += len(targets)
    return total / count


@torch.no_grad()
def their_logits(model: torch.nn.Module, folder: Path, prompts: list[str]) -> torch.Tensor:
    """transformers' logits after each prompt, [prompts, vocab]."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"] for prompt in prompts]
    return torch.stack([model(input_ids=prompt, use_cache=False).logits[0, -1] for prompt in ids])


def our_logits(folder: Path, prompts: list[str], like: torch.Tensor, context: int = 256) -> torch.Tensor:
    """The same by our binary."""
    logits = torch.full_like(like, float("nan"))
    for row, prompt in zip(logits, prompts):
        for token in tessera.logits(folder, prompt, len(row), context):
            row[token["id"]] = token["logit"]
    return logits


def worst_row(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest relative difference of one prompt's logits."""
    return max(tiny.relative(a, b) for a, b in zip(ours, theirs))


def smollm2(folder: Path) -> bool:
    """SmolLM2 and the Mixtral made of it."""
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
    loss = mean_loss(export, conversations)
    ours = tessera.metrics(run, "metrics/eval/LanguageCrossEntropy")[-1]
    what = f"SmolLM2: our evaluation ({ours:.6f}), transformers on our export ({loss:.6f})"
    good = tessera.report(what, abs(ours - loss) / loss, 1e-4)
    theirs = their_logits(oracle.from_folder(export), export, PROMPTS)
    good &= tessera.report("SmolLM2: logits of its export", worst_row(our_logits(export, PROMPTS, theirs), theirs), 1e-4)

    mixtral = folder / "mixtral"
    upcycle(export, mixtral)
    by_transformers = worst_row(their_logits(oracle.from_folder(mixtral), mixtral, PROMPTS), theirs)
    good &= tessera.report("Mixtral of SmolLM2's copies: logits by transformers", by_transformers, 1e-4)
    good &= tessera.report("Mixtral of SmolLM2's copies: logits", worst_row(our_logits(mixtral, PROMPTS, theirs), theirs), 1e-4)
    return good


def shapes(weights: Path) -> dict[str, list[int]]:
    """Names and shapes of a safetensors file."""
    with safe_open(weights, framework="pt") as tensors:
        return {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}


def config_problem(source: dict, export: dict, expected: dict) -> str:
    """How an export's config differs from the source's with what a run is expected to change."""
    wanted = {**source, **expected}
    keys = [key for key in sorted(wanted.keys() | export.keys()) if wanted.get(key) != export.get(key)]
    return "; ".join(f"{key} is {export.get(key)!r}, expected {wanted.get(key)!r}" for key in keys)


def tiny_export(case: str, folder: Path) -> bool:
    """One golden's model through training and export."""
    model = folder / "model"
    write_model(case, model)
    config = json.loads((model / "config.json").read_text())
    expected = {}
    if config["model_type"] == "dbrx":
        expected["rope_parameters"] = config.pop("rope_parameters")
        (model / "config.json").write_text(json.dumps(config))
    tiny.write_examples(folder / "train.jsonl", 4, seed=3)
    export = tessera.export_folder(tiny.train_with_tessera(folder, "run", tiny.Plan(2, 1, rows=4, packing="best_fit")))

    name = f"{case}: export"
    exported_config = json.loads((export / "config.json").read_text())
    good = tessera.holds(f"{name}, its config", config_problem(config, exported_config, expected))
    found, wanted = (shapes(path / "model.safetensors") for path in (export, model))
    other = sorted(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key))
    good &= tessera.holds(f"{name}, names and shapes", ", ".join(other))
    loaded, loading = AutoModelForCausalLM.from_pretrained(export, output_loading_info=True, **oracle.PLAIN)
    problems = {kind: keys for kind, keys in loading.items() if keys}
    good &= tessera.holds(f"{name} loads in transformers", "; ".join(f"{kind}: {keys}" for kind, keys in problems.items()))
    theirs = their_logits(loaded.eval(), export, TINY_PROMPTS)
    ours = our_logits(export, TINY_PROMPTS, theirs, tiny.CONTEXT)
    return good & tessera.report(f"{name}, logits", worst_row(ours, theirs), 1e-4)


def main() -> int:
    oracle.prepare()
    good = True
    for case in TINY_CASES:
        with tempfile.TemporaryDirectory() as temporary:
            good &= tiny_export(case, Path(temporary))
    with tempfile.TemporaryDirectory() as temporary:
        good &= smollm2(Path(temporary))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
