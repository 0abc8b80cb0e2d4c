#!/usr/bin/env python3
"""Trains the tiny Llamas of the goldens for 20 steps with `tessera train` and with transformers and torch's
AdamW, from the same text, and compares losses, gradient norms, exported weights and the logits they give.
The last checkpoint is opened with torch.distributed.checkpoint and must hold the exported weights.

Two runs each: rows of single examples in the order of the file (`packing: none`), and all examples packed
into one batch a step (`packing: best_fit`), where the order in which they were packed does not matter.
"""

import json
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import AutoModelForCausalLM
from transformers.utils import logging

import tessera

sys.path.insert(0, str(tessera.ROOT / "scripts/goldens"))
import make_llama_goldens as goldens

CASES = ["tied_gqa", "untied_mha", "llama3_rope", "sliding_window"]
STEPS, WARMUP_STEPS, EXAMPLES = 20, 4, 24
LEARNING_RATE = 1e-3
PACKINGS = {"none": 4, "best_fit": EXAMPLES}
# One token a character: the three special tokens and the printable ASCII characters fill the 97 rows.
SPECIAL = ["<unk>", "<s>", "</s>"]
CHARACTERS = [chr(code) for code in range(33, 127)]
END = SPECIAL.index("</s>")


def write_model(case: str, folder: Path) -> None:
    """A model folder in Hugging Face layout: the golden's config and weights, and a tokenizer of characters."""
    folder.mkdir()
    shutil.copy(goldens.GOLDENS / case / "config.json", folder / "config.json")
    shutil.copy(goldens.GOLDENS / case / "model.safetensors", folder / "model.safetensors")
    vocabulary = {token: index for index, token in enumerate(SPECIAL + CHARACTERS)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_examples(path: Path, seed: int) -> list[dict]:
    """Random prompts and responses of different lengths; '<' is left out so that no special token is spelt."""
    source = random.Random(seed)
    letters = [c for c in CHARACTERS if c != "<"]

    def text(shortest: int, longest: int) -> str:
        return "".join(source.choices(letters, k=source.randint(shortest, longest)))

    examples = [{"prompt": text(1, 20), "response": text(1, 30)} for _ in range(EXAMPLES)]
    path.write_text("".join(json.dumps(example) + "\n" for example in examples))
    return examples


def batch_of(examples: list[dict]) -> dict:
    """The examples as documents: loss on the response and on the end-of-text token."""
    batch = {"tokens": [], "labels": [], "cu_seqlens": [0]}
    for example in examples:
        ids = [len(SPECIAL) + CHARACTERS.index(c) for c in example["prompt"] + example["response"]] + [END]
        first_target = len(example["prompt"])
        batch["tokens"] += ids
        batch["labels"] += [ids[t + 1] if t + 1 >= first_target else goldens.IGNORED for t in range(len(ids) - 1)]
        batch["labels"].append(goldens.IGNORED)
        batch["cu_seqlens"].append(len(batch["tokens"]))
    return batch


def multiplier(step: int) -> float:
    """linear_decay_with_warmup to zero: step k runs at (k+1)/t_w of the peak, then at 1 - (k-t_w)/(T-t_w)."""
    if step < WARMUP_STEPS:
        return (step + 1) / WARMUP_STEPS
    return 1 - (step - WARMUP_STEPS) / (STEPS - WARMUP_STEPS)


def train_with_torch(model: torch.nn.Module, examples: list[dict], rows: int) -> tuple[list[float], list[float]]:
    """Losses and gradient norms of 20 steps over the examples in their order, again and again."""
    optimizer = goldens.adamw(model)
    losses, norms = [], []
    for step in range(STEPS):
        first = step * rows % len(examples)
        loss, _, _ = goldens.run_documents(model, batch_of(examples[first : first + rows]))
        optimizer.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), goldens.CLIP).item())
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * multiplier(step)
        optimizer.step()
        losses.append(loss.item())
    return losses, norms


def train_with_tessera(folder: Path, packing: str, rows: int) -> Path:
    """The same run with our binary, in fp32 on the CPU."""
    adamw = goldens.ADAMW
    settings = {
        "model": str(folder / "model"),
        "train_data_path": str(folder / "train.jsonl"),
        "eval_data_path": str(folder / "eval.jsonl"),
        "task_type": "INSTRUCTION_FINETUNE",
        "training_duration": f"{STEPS}ba",
        "learning_rate": LEARNING_RATE,
        "context_length": 64,
        "global_train_batch_size": rows,
        "optimizer": {"name": "adamw", "betas": adamw["betas"], "eps": adamw["eps"], "weight_decay": adamw["weight_decay"]},
        "scheduler": {"name": "linear_decay_with_warmup", "t_warmup": f"{WARMUP_STEPS}ba", "alpha_f": 0.0},
        "max_grad_norm": goldens.CLIP,
        "packing": packing,
        "shuffle": False,
        "precision": "fp32",
        "devices": "cpu",
        "save_folder": str(folder / "runs"),
        "run_name": f"{packing}",
    }
    return tessera.train(folder / f"{packing}.yaml", settings)


def checkpoint_opens(run: Path, export: Path) -> bool:
    """Whether PyTorch finds the export's weights in the run's latest checkpoint."""
    checkpoint = (run / "checkpoints/latest-sharded-rank0").resolve()
    command = [sys.executable, Path(__file__).with_name("check_dcp.py"), checkpoint, export / "model.safetensors"]
    ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(f"{'ok  ' if ran.returncode == 0 else 'FAIL'} {checkpoint.name} opened by torch.distributed.checkpoint")
    if ran.returncode != 0:
        print(ran.stdout[-2000:])
    return ran.returncode == 0


def compare(case: str, folder: Path) -> bool:
    """Both packings of one case; true where all comparisons hold."""
    write_model(case, folder / "model")
    examples = write_examples(folder / "train.jsonl", seed=1)
    held_out = batch_of(write_examples(folder / "eval.jsonl", seed=2))
    good = True
    for packing, rows in PACKINGS.items():
        name = f"{case}, packing {packing}"
        model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32, attn_implementation="eager")
        losses, norms = train_with_torch(model, examples, rows)
        run = train_with_tessera(folder, packing, rows)
        export = tessera.export_folder(run)
        ours = AutoModelForCausalLM.from_pretrained(export, dtype=torch.float32, attn_implementation="eager")

        def relative(a, b) -> float:
            return goldens.relative_difference(torch.as_tensor(a).double(), torch.as_tensor(b).double())

        weights = dict(model.named_parameters())
        worst = max(relative(p.detach(), weights[n].detach()) for n, p in ours.named_parameters())
        with torch.no_grad():
            (eval_loss, _, logits), (_, _, logits_torch) = (goldens.run_documents(m, held_out) for m in (ours, model))
        logged_eval = tessera.metrics(run, "metrics/eval/LanguageCrossEntropy")[-1:]
        good &= tessera.report(f"{name}: losses", relative(tessera.metrics(run, "loss/train/total"), losses), 1e-4)
        good &= tessera.report(f"{name}: gradient norms", relative(tessera.metrics(run, "l2_norm/grad/global"), norms), 1e-4)
        good &= tessera.report(f"{name}: weights, the worst tensor", worst, 1e-3)
        good &= tessera.report(f"{name}: logits of the trained models", relative(logits, logits_torch), 1e-3)
        good &= tessera.report(f"{name}: our evaluation, transformers on our export", relative(logged_eval, [eval_loss]), 1e-4)
        good &= checkpoint_opens(run, export)
    return good


def main() -> int:
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    good = True
    for case in CASES:
        with tempfile.TemporaryDirectory() as temporary:
            good &= compare(case, Path(temporary))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
