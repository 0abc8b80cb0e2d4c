"""What transformers and torch say about a packed batch, in fp32: losses, router decisions, optimizer steps.

A batch is {tokens, labels, positions, cu_seqlens, row_starts}: documents one behind the other, rows of documents, labels
shifted (labels[t] is the target of position t), IGNORED where there is no loss. Documents are run one by one, each in a row
of its own, so that nothing here depends on packing or on masks.
"""

import inspect
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import logging

IGNORED = -100
CLIP = 1.0
ADAMW = {"lr": 1e-3, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1}
# Attention and experts in plain torch: sums in one order, no kernels.
PLAIN = {"dtype": torch.float32, "attn_implementation": "eager", "experts_implementation": "eager"}


@dataclass
class RowsOutput:
    """A batch run through a model."""

    # Mean over the loss tokens.
    cross_entropy: torch.Tensor
    # Mean over the rows that hold tokens, times the config's coefficient; 0 without experts.
    balance_loss: torch.Tensor
    loss_tokens: int
    # [documents, vocab], at each document's last position.
    last_logits: torch.Tensor
    # The least distance between the logits of the last chosen expert and the first that was not; infinite without experts.
    router_gap: float

    @property
    def total(self) -> torch.Tensor:
        return self.cross_entropy + self.balance_loss


def prepare() -> None:
    """One thread, so that sums have one order, and no progress bars."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def from_folder(folder: Path) -> torch.nn.Module:
    """The model of a folder in Hugging Face layout."""
    return AutoModelForCausalLM.from_pretrained(folder, **PLAIN).eval()


def from_config(folder: Path) -> torch.nn.Module:
    """The model of a folder's config.json, weights to be filled in."""
    return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), **PLAIN).eval()


def fill_with_noise(model: torch.nn.Module, seed: int) -> None:
    """Random weights that depend on nothing but the seed, names and shapes.

    They are far from an initialisation: wide enough that attention is uneven and every gradient is far above rounding, with
    norms and biases that are not 1 and 0."""
    # RandomState's stream is frozen for good, torch's is not.
    random = numpy.random.RandomState(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            values = random.standard_normal(tuple(parameter.shape))
            if parameter.ndim > 1:
                values *= 1.5 / parameter.shape[-1] ** 0.5
            else:
                values = 0.2 * values + ("norm" in name)
            parameter.copy_(torch.from_numpy(values.astype(numpy.float32)))


def has_experts(model: torch.nn.Module) -> bool:
    return hasattr(model, "router_aux_loss_coef")


def on_disk(model: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors by parameter name as transformers saves them: Mixtral's experts are fused in memory and apart in files."""
    stored = revert_weight_conversion(model, tensors)
    return {name: tensor.detach().clone().contiguous() for name, tensor in stored.items()}


def weights_like(model: torch.nn.Module, names: Collection[str]) -> dict[str, torch.Tensor]:
    """The model's weights as a file of these names holds them: as in memory, or else as transformers saves them. A tied head
    is left out."""
    weights = dict(model.named_parameters())
    return weights if weights.keys() == set(names) else on_disk(model, weights)


def balance_loss(model: torch.nn.Module, router_logits: list[tuple[torch.Tensor, ...]]) -> torch.Tensor:
    """transformers' load_balancing_loss_func over the router logits of one row's documents, all layers pooled, times the
    config's coefficient. Like it, the layers' logits are [tokens, experts] each."""
    layers = tuple(torch.cat(documents) for documents in zip(*router_logits))
    function = inspect.getmodule(type(model)).load_balancing_loss_func
    return model.router_aux_loss_coef * function(layers, model.num_experts, model.num_experts_per_tok)


def smallest_gap(model: torch.nn.Module, router_logits: list[tuple[torch.Tensor, ...]]) -> float:
    """How close a router came to choosing another expert."""
    chosen = model.num_experts_per_tok
    if chosen == model.num_experts:
        return float("inf")
    ranked = [logits.detach().sort(dim=-1, descending=True).values for document in router_logits for logits in document]
    return min((logits[:, chosen - 1] - logits[:, chosen]).min().item() for logits in ranked)


def run_rows(model: torch.nn.Module, batch: dict) -> RowsOutput:
    """Runs a batch. The load-balancing loss is that of whole rows, as if each were one sequence."""
    losses, last_logits, balance_losses, gap = [], [], [], float("inf")
    bounds = batch["cu_seqlens"]
    documents = list(zip(bounds, bounds[1:]))
    asked = {"output_router_logits": True} if has_experts(model) else {}
    for row_start, row_end in zip(batch["row_starts"], batch["row_starts"][1:]):
        router_logits = []
        for start, end in (d for d in documents if row_start <= d[0] < row_end):
            output = model(input_ids=torch.tensor([batch["tokens"][start:end]]), use_cache=False, **asked)
            labels = torch.tensor(batch["labels"][start:end])
            logits = output.logits[0]
            losses.append(torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum"))
            last_logits.append(logits[-1].detach())
            if asked:
                router_logits.append(output.router_logits)
        if router_logits:
            balance_losses.append(balance_loss(model, router_logits))
            gap = min(gap, smallest_gap(model, router_logits))
    loss_tokens = sum(label != IGNORED for label in batch["labels"])
    balance = torch.stack(balance_losses).mean() if balance_losses else torch.zeros(())
    return RowsOutput(torch.stack(losses).sum() / loss_tokens, balance, loss_tokens, torch.stack(last_logits), gap)


def adamw(model: torch.nn.Module, epsilon: float = ADAMW["eps"]) -> torch.optim.AdamW:
    """torch's AdamW; weights of two or more dimensions decay, norms and biases do not."""
    decaying = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    settings = {"lr": ADAMW["lr"], "betas": tuple(ADAMW["betas"]), "eps": epsilon, "foreach": False}
    groups = [{"params": decaying, "weight_decay": ADAMW["weight_decay"]}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, **settings)


def clip_gradients(model: torch.nn.Module) -> float:
    """Scales the gradients to a norm of at most CLIP and returns the norm before."""
    return torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP, foreach=False).item()


@torch.no_grad()
def clipped_share(model: torch.nn.Module, batch: dict) -> float:
    """The share of queries, keys and values that a DBRX clamps."""
    clipped, values = 0, 0

    def count(_module, _inputs, output):
        nonlocal clipped, values
        clipped += (output.abs() > model.config.attn_config.clip_qkv).sum().item()
        values += output.numel()

    hooks = [m.register_forward_hook(count) for name, m in model.named_modules() if name.endswith("Wqkv")]
    run_rows(model, batch)
    for hook in hooks:
        hook.remove()
    return clipped / values


def relative_difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """||a-b|| / ||b||; infinite when the shapes differ."""
    if ours.shape != theirs.shape:
        return float("inf")
    scale = theirs.norm().item()
    return (ours - theirs).norm().item() / (scale or 1.0)
