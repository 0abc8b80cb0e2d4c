#!/usr/bin/env python3
"""Makes the goldens of `crates/model/tests/goldens`: tiny random Llamas as transformers and torch see them.

A case is a folder with
  config.json         half of them spelt as on the hub (rope_theta, rope_scaling, torch_dtype), half as
                      transformers 5 writes it (rope_parameters, dtype)
  model.safetensors fp32, Hugging Face names
  batch.json          {"batches": [four of {tokens, labels, positions, cu_seqlens}]}: packed documents,
                      labels shifted (labels[t] is the target of position t), -100 where there is no loss
  golden.safetensors  of batch 0: grad.<name> for each parameter, and logits [documents, vocab] at the
                      last position of each document; where the case says so after3.<name>, the weights
                      after three optimizer steps
  golden.json         loss and loss_tokens of batch 0; the optimizer; 20 steps over the batches in turn:
                      losses and gradient norms (before clipping)

Documents are run through transformers one by one, each in a row of its own, so the goldens know nothing
of packing. loss = sum of the token losses / number of loss tokens. Everything is fp32, on one thread.

  make_llama_goldens.py            writes all cases
  make_llama_goldens.py --check    makes them in a temporary folder and compares (1e-5, ||a-b|| / ||b||)
"""

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig
from transformers.utils import logging

GOLDENS = Path(__file__).resolve().parents[2] / "crates/model/tests/goldens"
IGNORED = -100
STEPS = 20
CLIP = 1.0
ADAMW = {"lr": 1e-3, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1}
# Lengths of the documents of the four batches. A document of length 1 has no key but itself.
BATCH_LENGTHS = [[21, 1, 34, 8], [40, 3, 19], [1, 30, 2, 12, 17], [5, 25, 1, 1, 28]]


@dataclass
class Case:
    """A model's config.json and what its goldens hold."""

    name: str
    seed: int
    config: dict
    weights_after_three_steps: bool = False


def hub(architecture: str = "LlamaForCausalLM", **changes) -> dict:
    """A config.json in the hub's spelling. Sizes are odd on purpose: no kernel may rely on round ones."""
    config = {
        "architectures": [architecture],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 32,
        "initializer_range": 0.02,
        "intermediate_size": 44,
        "max_position_embeddings": 128,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "use_cache": True,
        "vocab_size": 97,
    }
    config.update(changes)
    return config


def transformers5(**changes) -> dict:
    """The same config as transformers 5 itself writes it."""
    settings = {k: v for k, v in hub().items() if k not in ("rope_theta", "rope_scaling", "torch_dtype")}
    settings.update(rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, dtype="float32")
    settings.update(changes)
    return json.loads(LlamaConfig(**settings).to_json_string())


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    # With heads of 16 this keeps, smooths and divides some frequencies each.
    "original_max_position_embeddings": 64,
}

CASES = [
    Case("tied_gqa", 1, hub(tie_word_embeddings=True), weights_after_three_steps=True),
    Case("untied_mha", 2, transformers5(num_key_value_heads=4, num_hidden_layers=3)),
    Case("llama3_rope", 3, hub(rope_scaling=LLAMA3, hidden_size=48, num_attention_heads=3, num_key_value_heads=1)),
    Case("linear_rope", 4, transformers5(rope_parameters={"rope_type": "linear", "factor": 2.5, "rope_theta": 5000.0})),
    Case("dynamic_rope", 5, hub(rope_scaling={"type": "dynamic", "factor": 4.0}, max_position_embeddings=64)),
    Case("bias", 6, transformers5(attention_bias=True, mlp_bias=True)),
    Case("head_dim", 7, transformers5(head_dim=14, tie_word_embeddings=True)),
    Case(
        "sliding_window",
        8,
        hub("MistralForCausalLM", model_type="mistral", sliding_window=6, rope_theta=1000.0),
    ),
]


def random_model(case: Case, folder: Path) -> torch.nn.Module:
    """Writes config.json and builds from it the model with random weights.

    The weights are far from an initialisation: wide enough that attention is uneven and every gradient
    is far above rounding, with norms and biases that are not 1 and 0."""
    (folder / "config.json").write_text(json.dumps(case.config, indent=2) + "\n")
    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    # RandomState's stream is frozen for good, torch's is not.
    random = numpy.random.RandomState(case.seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            values = random.standard_normal(tuple(parameter.shape))
            if parameter.ndim > 1:
                values *= 1.5 / parameter.shape[1] ** 0.5
            else:
                values = 0.2 * values + ("norm" in name)
            parameter.copy_(torch.from_numpy(values.astype(numpy.float32)))
    return model.eval()


def random_batch(lengths: list[int], vocabulary: int, random: numpy.random.RandomState) -> dict:
    """Packed documents of these lengths, each with a prompt that bears no loss. The second document is one
    that was cut over rows: its last position has a target too."""
    batch = {"tokens": [], "labels": [], "positions": [], "cu_seqlens": [0]}
    for document, length in enumerate(lengths):
        text = random.randint(0, vocabulary, length + 1).tolist()
        labels = text[1:]
        if document != 1:
            labels[-1] = IGNORED
        prompt = random.randint(0, length // 2 + 1)
        labels[:prompt] = [IGNORED] * prompt
        batch["tokens"] += text[:-1]
        batch["labels"] += labels
        batch["positions"] += list(range(length))
        batch["cu_seqlens"].append(batch["cu_seqlens"][-1] + length)
    return batch


def run_documents(model: torch.nn.Module, batch: dict) -> tuple[torch.Tensor, int, torch.Tensor]:
    """Mean loss over the loss tokens, their number, and each document's logits at its last position."""
    losses, last_logits = [], []
    bounds = batch["cu_seqlens"]
    for start, end in zip(bounds, bounds[1:]):
        logits = model(input_ids=torch.tensor([batch["tokens"][start:end]]), use_cache=False).logits[0]
        labels = torch.tensor(batch["labels"][start:end])
        losses.append(torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum"))
        last_logits.append(logits[-1].detach())
    loss_tokens = sum(label != IGNORED for label in batch["labels"])
    return torch.stack(losses).sum() / loss_tokens, loss_tokens, torch.stack(last_logits)


def adamw(model: torch.nn.Module) -> torch.optim.AdamW:
    """torch's AdamW; weights of two or more dimensions decay, norms and biases do not."""
    decaying = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    settings = {"lr": ADAMW["lr"], "betas": tuple(ADAMW["betas"]), "eps": ADAMW["eps"], "foreach": False}
    groups = [{"params": decaying, "weight_decay": ADAMW["weight_decay"]}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, **settings)


def trajectory(model: torch.nn.Module, batches: list[dict], tensors: dict, keep_after_three: bool) -> dict:
    """20 steps at a constant rate with clipping; the gradients of the first one go to `tensors`."""
    optimizer = adamw(model)
    losses, gradient_norms = [], []
    for step in range(STEPS):
        loss, _, _ = run_documents(model, batches[step % len(batches)])
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            tensors.update({f"grad.{name}": p.grad.clone() for name, p in model.named_parameters()})
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP, foreach=False)
        optimizer.step()
        losses.append(loss.item())
        gradient_norms.append(norm.item())
        if step == 2 and keep_after_three:
            tensors.update({f"after3.{name}": p.detach().clone() for name, p in model.named_parameters()})
    return {"losses": losses, "gradient_norms": gradient_norms}


def make_case(case: Case, folder: Path) -> None:
    """Writes one case's folder anew."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model = random_model(case, folder)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    random = numpy.random.RandomState(1000 + case.seed)
    batches = [random_batch(lengths, case.config["vocab_size"], random) for lengths in BATCH_LENGTHS]
    (folder / "batch.json").write_text(json.dumps({"batches": batches}) + "\n")

    with torch.no_grad():
        loss, loss_tokens, logits = run_documents(model, batches[0])
    tensors = {"logits": logits}
    golden = {"loss": loss.item(), "loss_tokens": loss_tokens}
    golden["optimizer"] = {"name": "adamw", **ADAMW, "max_grad_norm": CLIP}
    golden.update(trajectory(model, batches, tensors, case.weights_after_three_steps))
    save_file(tensors, folder / "golden.safetensors", metadata={"format": "pt"})
    (folder / "golden.json").write_text(json.dumps(golden, indent=1) + "\n")


def relative_difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """||a-b|| / ||b||; infinite when the shapes differ."""
    if ours.shape != theirs.shape:
        return float("inf")
    scale = theirs.norm().item()
    return (ours - theirs).norm().item() / (scale or 1.0)


def differences(made: Path, stored: Path) -> list[str]:
    """What differs between a case made now and the stored one, beyond rounding."""
    found = []
    for name in ("config.json", "batch.json", "model.safetensors"):
        if not (stored / name).is_file() or (made / name).read_bytes() != (stored / name).read_bytes():
            found.append(f"{name} is not the same")
    if found:
        return found
    now, then = load_file(made / "golden.safetensors"), load_file(stored / "golden.safetensors")
    if now.keys() != then.keys():
        return ["golden.safetensors holds other tensors"]
    numbers_now, numbers_then = (json.loads((folder / "golden.json").read_text()) for folder in (made, stored))
    for name in ("loss", "losses", "gradient_norms"):
        now[name], then[name] = (torch.tensor(n[name], dtype=torch.float64) for n in (numbers_now, numbers_then))
    for name in sorted(now):
        difference = relative_difference(now[name], then[name])
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
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    if arguments.check:
        return 0 if check(CASES) else 1
    for case in CASES:
        make_case(case, GOLDENS / case.name)
        print(f"{case.name}: {sum(f.stat().st_size for f in (GOLDENS / case.name).iterdir()):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
