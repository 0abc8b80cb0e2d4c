"""Tiny models that train on text: a tokenizer of characters, examples whose packing is known beforehand, and the same run
with `tessera train` and with transformers and torch's AdamW.
"""

import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer, decoders, models

import tessera

sys.path.insert(0, str(tessera.ROOT / "scripts/goldens"))
import oracle

CONTEXT = 64
LEARNING_RATE = 1e-3
# One token a character: the three special tokens and the printable ASCII characters fill 97 rows.
SPECIAL = ["<unk>", "<s>", "</s>"]
CHARACTERS = [chr(code) for code in range(33, 127)]
END = SPECIAL.index("</s>")


@dataclass
class Plan:
    """A run of a tiny model. `rows` is the batch in packed rows: those that `packing` does not fill are empty."""

    steps: int
    warmup: int
    rows: int
    packing: str
    micro_batch: int | str = "auto"
    epsilon: float = oracle.ADAMW["eps"]

    def multiplier(self, step: int) -> float:
        """linear_decay_with_warmup to zero: step k runs at (k+1)/t_w of the peak, then at 1 - (k-t_w)/(T-t_w)."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        return 1 - (step - self.warmup) / (self.steps - self.warmup)


@dataclass
class Curves:
    """What a run with torch went through, step by step."""

    losses: list[float]
    balance_losses: list[float]
    gradient_norms: list[float]
    router_gap: float


def write_tokenizer(folder: Path) -> None:
    """A tokenizer of characters, as a model folder has it."""
    vocabulary = {token: index for index, token in enumerate(SPECIAL + CHARACTERS)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_examples(path: Path, pairs: int, seed: int) -> list[list[dict]]:
    """Random prompts and responses, in pairs that fill a row of CONTEXT tokens to the last: the longer ones have different
    lengths, so best-fit packing finds these pairs and no others. '<' is left out so that no special token is spelt."""
    source = random.Random(seed)
    letters = [c for c in CHARACTERS if c != "<"]

    def example(tokens: int) -> dict:
        text = source.choices(letters, k=tokens - 1)
        first = source.randint(1, tokens - 2)
        return {"prompt": "".join(text[:first]), "response": "".join(text[first:])}

    lengths = source.sample(range(CONTEXT // 2 + 1, CONTEXT - 3), pairs)
    rows = [[example(length), example(CONTEXT - length)] for length in lengths]
    path.write_text("".join(json.dumps(example) + "\n" for row in rows for example in row))
    return rows


def batch_of(rows: list[list[dict]]) -> dict:
    """Rows of examples: loss on the response and on the end-of-text token."""
    batch = {"tokens": [], "labels": [], "cu_seqlens": [0], "row_starts": [0]}
    for row in rows:
        for example in row:
            ids = [len(SPECIAL) + CHARACTERS.index(c) for c in example["prompt"] + example["response"]] + [END]
            first_target = len(example["prompt"])
            batch["tokens"] += ids
            batch["labels"] += [ids[t + 1] if t + 1 >= first_target else oracle.IGNORED for t in range(len(ids) - 1)]
            batch["labels"].append(oracle.IGNORED)
            batch["cu_seqlens"].append(len(batch["tokens"]))
        batch["row_starts"].append(len(batch["tokens"]))
    return batch


def batches_of(plan: Plan, pairs: list[list[dict]]) -> list[dict]:
    """The batches of an epoch, where a batch takes all that is packed or the epoch's examples fill whole batches."""
    if plan.packing == "best_fit":
        return [batch_of(pairs)]
    rows = [[example] for pair in pairs for example in pair]
    return [batch_of(rows[first : first + plan.rows]) for first in range(0, len(rows), plan.rows)]


def train_with_torch(model: torch.nn.Module, plan: Plan, batches: list[dict]) -> Curves:
    """Trains over the batches in their order, again and again."""
    optimizer = oracle.adamw(model, plan.epsilon)
    curves = Curves([], [], [], float("inf"))
    for step in range(plan.steps):
        output = oracle.run_rows(model, batches[step % len(batches)])
        optimizer.zero_grad()
        output.total.backward()
        curves.gradient_norms.append(oracle.clip_gradients(model))
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * plan.multiplier(step)
        optimizer.step()
        curves.losses.append(output.cross_entropy.item())
        curves.balance_losses.append(output.balance_loss.item())
        curves.router_gap = min(curves.router_gap, output.router_gap)
    return curves


def train_with_tessera(folder: Path, name: str, plan: Plan, **changes) -> Path:
    """The same run with our binary, in fp32 on the CPU: folder/model on folder/train.jsonl. Returns the run's folder."""
    adamw = {"betas": oracle.ADAMW["betas"], "eps": plan.epsilon, "weight_decay": oracle.ADAMW["weight_decay"]}
    settings = {
        "model": str(folder / "model"),
        "train_data_path": str(folder / "train.jsonl"),
        "task_type": "INSTRUCTION_FINETUNE",
        "training_duration": f"{plan.steps}ba",
        "learning_rate": LEARNING_RATE,
        "context_length": CONTEXT,
        "global_train_batch_size": plan.rows,
        "device_train_microbatch_size": plan.micro_batch,
        "optimizer": {"name": "adamw", **adamw},
        "scheduler": {"name": "linear_decay_with_warmup", "t_warmup": f"{plan.warmup}ba", "alpha_f": 0.0},
        "max_grad_norm": oracle.CLIP,
        "packing": plan.packing,
        "shuffle": False,
        "precision": "fp32",
        "devices": "cpu",
        "save_folder": str(folder / "runs"),
        "run_name": name,
        **changes,
    }
    return tessera.train(folder / f"{name}.yaml", settings)


def relative(a, b) -> float:
    """||a-b|| / ||b|| of lists or tensors."""
    return oracle.relative_difference(torch.as_tensor(a).detach().double(), torch.as_tensor(b).detach().double())


def worst_tensor(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The largest relative difference of a tensor; infinite where names are missing or too many."""
    if found.keys() != expected.keys():
        return float("inf")
    return max(relative(found[name], expected[name]) for name in expected)


def differences(run: Path, curves: Curves, weights: dict[str, torch.Tensor]) -> dict[str, tuple[float, float]]:
    """How a run with our binary differs from that with torch which left `weights`, and the limit of each difference."""
    total = [a + b for a, b in zip(curves.losses, curves.balance_losses)]
    found = {
        "total loss": (relative(tessera.metrics(run, "loss/train/total"), total), 1e-4),
        "cross-entropy": (relative(tessera.metrics(run, "metrics/train/LanguageCrossEntropy"), curves.losses), 1e-4),
        "gradient norms": (relative(tessera.metrics(run, "l2_norm/grad/global"), curves.gradient_norms), 1e-4),
        "weights, the worst tensor": (worst_tensor(load_file(tessera.export_folder(run) / "model.safetensors"), weights), 1e-3),
    }
    if any(curves.balance_losses):
        found["loss without balance"] = (relative(tessera.metrics(run, "loss/train/loss"), curves.losses), 1e-4)
        found["balance loss"] = (relative(tessera.metrics(run, "loss/train/lbl"), curves.balance_losses), 1e-4)
    return found
