#!/usr/bin/env python3
"""Trains tiny models of the goldens for 20 steps with `tessera train` and with transformers and torch's
AdamW, from the same text, and compares losses, gradient norms, exported weights and the logits they give.
The last checkpoint is opened with torch.distributed.checkpoint and must hold the exported weights.

Two runs each: rows of single examples in the order of the file (`packing: none`), and all examples packed
into one batch a step (`packing: best_fit`), where the order in which they were packed does not matter.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

import tessera
import tiny
from make_goldens import GOLDENS  # tiny has put scripts/goldens on the path
from tiny import oracle

# Each with the seed of its text. With these no router's choice hangs on rounding.
CASES = {
    "tied_gqa": 1,
    "untied_mha": 1,
    "llama3_rope": 1,
    "sliding_window": 1,
    "mixtral": 7,
    "mixtral_fused": 4,
    "dbrx": 7,
}
PAIRS = 12
PLANS = [tiny.Plan(20, 4, rows=4, packing="none"), tiny.Plan(20, 4, rows=2 * PAIRS, packing="best_fit")]
# A choice of experts that hangs on less may fall otherwise with us.
LEAST_ROUTER_GAP = 1e-5


def write_model(case: str, folder: Path) -> None:
    """A model folder in Hugging Face layout: the golden's config and weights, and a tokenizer of characters."""
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(GOLDENS / case / name, folder / name)
    tiny.write_tokenizer(folder)


def checkpoint_opens(run: Path, export: Path) -> bool:
    """Whether PyTorch finds the export's weights in the run's latest checkpoint."""
    checkpoint = (run / "checkpoints/latest-sharded-rank0").resolve()
    command = [sys.executable, Path(__file__).with_name("check_dcp.py"), checkpoint, export / "model.safetensors"]
    ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    problem = ran.stdout[-2000:] if ran.returncode != 0 else ""
    return tessera.holds(f"{checkpoint.name} opened by torch.distributed.checkpoint", problem)


def compare(case: str, seed: int, folder: Path) -> bool:
    """Both packings of one case; true where all comparisons hold."""
    write_model(case, folder / "model")
    names = load_file(folder / "model/model.safetensors").keys()
    pairs = tiny.write_examples(folder / "train.jsonl", PAIRS, seed)
    held_out = tiny.batch_of(tiny.write_examples(folder / "eval.jsonl", PAIRS, seed + 1000))
    good = True
    for plan in PLANS:
        name = f"{case}, packing {plan.packing}"
        model = oracle.from_folder(folder / "model")
        curves = tiny.train_with_torch(model, plan, tiny.batches_of(plan, pairs))
        if curves.router_gap < LEAST_ROUTER_GAP:
            good = tessera.holds(name, f"a router's choice hangs on {curves.router_gap:.1e}: take another seed")
        run = tiny.train_with_tessera(folder, plan.packing, plan, eval_data_path=str(folder / "eval.jsonl"))
        for what, (difference, limit) in tiny.differences(run, curves, oracle.weights_like(model, names)).items():
            good &= tessera.report(f"{name}: {what}", difference, limit)

        export = tessera.export_folder(run)
        with torch.no_grad():
            ours, theirs = (oracle.run_rows(m, held_out) for m in (oracle.from_folder(export), model))
        logged = tessera.metrics(run, "metrics/eval/LanguageCrossEntropy")[-1:]
        good &= tessera.report(f"{name}: logits of the trained models", tiny.relative(ours.last_logits, theirs.last_logits), 1e-3)
        evaluated = tiny.relative(logged, [ours.cross_entropy])
        good &= tessera.report(f"{name}: our evaluation, transformers on our export", evaluated, 1e-4)
        good &= checkpoint_opens(run, export)
    return good


def main() -> int:
    oracle.prepare()
    good = True
    for case, seed in CASES.items():
        with tempfile.TemporaryDirectory() as temporary:
            good &= compare(case, seed, Path(temporary))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
