#!/usr/bin/env python3
"""Makes the goldens of `crates/model/tests/goldens`: tiny random models of every family (cases.py) as transformers and torch
see them (oracle.py). Everything is fp32, on one thread.

A case is a folder with
  config.json
  model.safetensors   names as in Hugging Face folders
  batch.json          {"batches": [four of {tokens, labels, positions, cu_seqlens, row_starts}]}: documents packed into rows of
                      different lengths, one of them empty; labels shifted (labels[t] is the target of position t), -100
                      where there is no loss
  golden.safetensors  of batch 0: grad.<name> for each tensor of model.safetensors, and logits [documents, vocab] at the last
                      position of each document; where the case says so after3.<name>, the weights after three optimizer steps
  golden.json         loss and loss_tokens of batch 0; the optimizer; 20 steps over the batches in turn: losses and gradient
                      norms (before clipping); with experts also balance_losses

How the numbers are made. Documents run through transformers one by one, each in a row of its own.
  loss           sum of the batch's token losses (cross-entropy) / number of its loss tokens
  balance_loss   for each row that holds tokens: transformers' load_balancing_loss_func of the router logits of the row's
                 documents, all layers pooled; the mean over those rows, times router_aux_loss_coef or moe_loss_weight
  gradients      of loss + balance_loss, by torch's autograd
  steps          torch's clip_grad_norm_ and AdamW at a constant rate
No routing decision of the 20 steps hangs on rounding, and a DBRX that clips does clip; a seed for which this does not hold is
refused.

  make_goldens.py [CASE ...]           writes all cases, or those named
  make_goldens.py --check [CASE ...]   makes them in a temporary folder and compares (1e-5, ||a-b|| / ||b||)
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy
import torch
from safetensors.torch import load_file, save_file

import oracle
from cases import CASES, Case

GOLDENS = Path(__file__).resolve().parents[2] / "crates/model/tests/goldens"
STEPS = 20
# Lengths of the documents of the rows of the four batches. A document of length 1 has no key but itself.
BATCHES = [
    [[21, 1], [34, 8]],
    [[40], [3, 19]],
    [[1, 30, 2], [], [12, 17]],
    [[5, 25, 1, 1, 28]],
]
LEAST_ROUTER_GAP = 1e-4
CLIPPED_SHARES = (0.05, 0.30)


def random_model(case: Case, folder: Path) -> torch.nn.Module:
    """Writes config.json and builds from it the model with random weights."""
    (folder / "config.json").write_text(json.dumps(case.config, indent=2) + "\n")
    model = oracle.from_config(folder)
    oracle.fill_with_noise(model, case.seed)
    return model


def random_batch(rows: list[list[int]], vocabulary: int, random: numpy.random.RandomState) -> dict:
    """Rows of documents of these lengths, each with a prompt that bears no loss. The second document is one
    that was cut over rows: its last position has a target too."""
    batch = {"tokens": [], "labels": [], "positions": [], "cu_seqlens": [0], "row_starts": [0]}
    for lengths in rows:
        for length in lengths:
            text = random.randint(0, vocabulary, length + 1).tolist()
            labels = text[1:]
            if len(batch["cu_seqlens"]) != 2:
                labels[-1] = oracle.IGNORED
            prompt = random.randint(0, length // 2 + 1)
            labels[:prompt] = [oracle.IGNORED] * prompt
            batch["tokens"] += text[:-1]
            batch["labels"] += labels
            batch["positions"] += list(range(length))
            batch["cu_seqlens"].append(batch["cu_seqlens"][-1] + length)
        batch["row_starts"].append(batch["cu_seqlens"][-1])
    return batch


def in_file(case: Case, model: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors by parameter name as the case's file holds them."""
    if case.fused_experts:
        return {name: tensor.detach().clone() for name, tensor in tensors.items()}
    return oracle.on_disk(model, tensors)


def trajectory(case: Case, model: torch.nn.Module, batches: list[dict], tensors: dict) -> dict:
    """20 steps at a constant rate with clipping; the gradients of the first one go to `tensors`, and the weights after the
    third where the case asks for them."""
    optimizer = oracle.adamw(model)
    losses, gradient_norms, balance_losses = [], [], []
    for step in range(STEPS):
        output = oracle.run_rows(model, batches[step % len(batches)])
        if output.router_gap < LEAST_ROUTER_GAP:
            raise SystemExit(
                f"{case.name}: in step {step} a router's choice hangs on {output.router_gap:.1e}: take another seed"
            )
        optimizer.zero_grad()
        output.total.backward()
        if step == 0:
            gradients = in_file(case, model, {name: p.grad for name, p in model.named_parameters()})
            tensors.update({f"grad.{name}": gradient for name, gradient in gradients.items()})
        gradient_norms.append(oracle.clip_gradients(model))
        optimizer.step()
        losses.append(output.cross_entropy.item())
        balance_losses.append(output.balance_loss.item())
        if step == 2 and case.weights_after_three_steps:
            weights = in_file(case, model, dict(model.named_parameters()))
            tensors.update({f"after3.{name}": weight for name, weight in weights.items()})
    numbers = {"losses": losses, "gradient_norms": gradient_norms}
    return {**numbers, "balance_losses": balance_losses} if oracle.has_experts(model) else numbers


def check_clipping(case: Case, model: torch.nn.Module, batch: dict) -> None:
    """Refuses a DBRX whose clipping would not show."""
    if case.config.get("attn_config", {}).get("clip_qkv") is None:
        return
    share = oracle.clipped_share(model, batch)
    if not CLIPPED_SHARES[0] <= share <= CLIPPED_SHARES[1]:
        raise SystemExit(f"{case.name}: {share:.1%} of queries, keys and values are clipped: take another clip_qkv")


def make_case(case: Case, folder: Path) -> None:
    """Writes one case's folder anew."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model = random_model(case, folder)
    weights = in_file(case, model, dict(model.named_parameters()))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    random = numpy.random.RandomState(1000 + case.seed)
    batches = [random_batch(rows, case.config["vocab_size"], random) for rows in BATCHES]
    (folder / "batch.json").write_text(json.dumps({"batches": batches}) + "\n")
    check_clipping(case, model, batches[0])

    with torch.no_grad():
        output = oracle.run_rows(model, batches[0])
    tensors = {"logits": output.last_logits}
    golden = {"loss": output.cross_entropy.item(), "loss_tokens": output.loss_tokens}
    golden["optimizer"] = {"name": "adamw", **oracle.ADAMW, "max_grad_norm": oracle.CLIP}
    golden.update(trajectory(case, model, batches, tensors))
    save_file(tensors, folder / "golden.safetensors", metadata={"format": "pt"})
    (folder / "golden.json").write_text(json.dumps(golden, indent=1) + "\n")


def differences(made: Path, stored: Path) -> list[str]:
    """What differs between a case made now and the stored one, beyond rounding."""
    found = []
    for name in ("config.json", "batch.json", "model.safetensors"):
        if not (stored / name).is_file() or (made / name).read_bytes() != (stored / name).read_bytes():
            found.append(f"{name} is not the same")
    if found:
        return found
    now, then = load_file(made / "golden.safetensors"), load_file(stored / "golden.safetensors")
    numbers_now, numbers_then = (json.loads((folder / "golden.json").read_text()) for folder in (made, stored))
    if now.keys() != then.keys() or numbers_now.keys() != numbers_then.keys():
        return ["golden.safetensors or golden.json holds other things"]
    for name in {"loss", "losses", "gradient_norms", "balance_losses"} & numbers_now.keys():
        now[name], then[name] = (torch.tensor(n[name], dtype=torch.float64) for n in (numbers_now, numbers_then))
    for name in sorted(now):
        difference = oracle.relative_difference(now[name], then[name])
        if not difference <= 1e-5:
            found.append(f"{name} differs by {difference:.1e}")
    return found


def check(cases: list[Case]) -> bool:
    """Makes the cases anew and prints how they compare with the stored ones."""
    good = True
    with tempfile.TemporaryDirectory() as temporary:
        for case in cases:
            made, stored = Path(temporary) / case.name, GOLDENS / case.name
            make_case(case, made)
            found = differences(made, stored)
            same_bytes = not found and all(
                (made / n).read_bytes() == (stored / n).read_bytes() for n in ("golden.json", "golden.safetensors")
            )
            print(f"{case.name}: {'; '.join(found) or ('the same bytes' if same_bytes else 'the same to rounding')}")
            good = good and not found
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    names = [case.name for case in CASES]
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"{', '.join(names)}; all where none is named")
    arguments = parser.parse_args()
    if unknown := set(arguments.cases) - set(names):
        parser.error(f"no case is named {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    cases = [case for case in CASES if case.name in arguments.cases or not arguments.cases]
    oracle.prepare()
    if arguments.check:
        return 0 if check(cases) else 1
    for case in cases:
        make_case(case, GOLDENS / case.name)
        print(f"{case.name}: {sum(f.stat().st_size for f in (GOLDENS / case.name).iterdir()):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
