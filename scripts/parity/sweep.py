#!/usr/bin/env python3
"""Trains random tiny models of all families for 3 steps with `tessera train` and with transformers and torch's AdamW, and
compares losses, gradient norms and exported weights.

A case is drawn from its number alone: sizes, heads, head sizes, windows, rotary scalings, tied and untied heads, biases,
experts, choices a token, clipping, normalisation of routing weights, spelling of config and tensors, packing, micro-batches.
A case in which a router's choice hangs on less than 1e-5 may fall otherwise with us; it is skipped and counted.

  sweep.py                   24 cases
  sweep.py --first 100 --cases 50
"""

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import save_file
from transformers import AutoConfig

import tessera
import tiny
from cases import dbrx, hub, mixtral
from tiny import oracle

LEAST_ROUTER_GAP = 1e-5
PAIRS = 6
# AdamW's first update is the gradient's sign wherever the gradient is far above its epsilon. Among thousands of elements some
# gradient is nothing but rounding; with this epsilon it moves nothing.
EPSILON = 1e-5
# In a narrower model the row before a norm may be next to nothing, and the norm magnifies its rounding.
LEAST_WIDTH = 12


def heads(source: random.Random) -> tuple[int, int, int]:
    """Attention heads, key/value heads, and a head's size."""
    key_value_heads = source.randint(1, 3)
    count = key_value_heads * source.randint(1, 3)
    return count, key_value_heads, source.choice([size for size in (4, 6, 8, 10, 16) if count * size >= LEAST_WIDTH])


def sizes(source: random.Random) -> dict:
    """What Llamas, Mistrals and Mixtrals have in common. Half the models are as wide as their heads together; the others
    are a multiple of the heads wide, as transformers demands of a Llama."""
    count, key_value_heads, head_dim = heads(source)
    own_width = {"hidden_size": count * source.choice([13, 15, 17]), "head_dim": head_dim}
    width = source.choice([own_width, {"hidden_size": count * head_dim}])
    return {
        **width,
        **rope(source),
        "num_attention_heads": count,
        "num_key_value_heads": key_value_heads,
        "num_hidden_layers": source.randint(1, 3),
        "intermediate_size": source.randint(3, 50),
        "vocab_size": source.choice([97, 101, 128]),
        "rms_norm_eps": source.choice([1e-5, 1e-6]),
        "tie_word_embeddings": source.random() < 0.5,
    }


def rope(source: random.Random) -> dict:
    """Base and scaling. `dynamic` stays below the length at which it would change anything."""
    llama3 = {
        "rope_type": "llama3",
        "factor": source.uniform(2, 32),
        "low_freq_factor": 1.0,
        "high_freq_factor": source.uniform(2, 8),
        "original_max_position_embeddings": source.choice([16, 64]),
    }
    linear = {"rope_type": "linear", "factor": source.uniform(1.5, 8)}
    dynamic = {"rope_type": "dynamic", "factor": 2.0}
    scaling = source.choice([None, None, llama3, linear, dynamic])
    return {"rope_theta": source.choice([500.0, 10000.0, 500000.0]), "rope_scaling": scaling}


def window(source: random.Random) -> int | None:
    """A sliding window. In one of 1 the gradients of queries and keys are nothing but rounding."""
    return source.choice([None, 1, 3, 7, 20, 100])


def a_llama(source: random.Random) -> dict:
    return hub(attention_bias=source.random() < 0.5, mlp_bias=source.random() < 0.5, **sizes(source))


def a_mistral(source: random.Random) -> dict:
    return hub("MistralForCausalLM", model_type="mistral", sliding_window=window(source), **sizes(source))


def a_mixtral(source: random.Random) -> dict:
    experts = source.randint(3, 9)
    shape = sizes(source)
    # Without it transformers fails where the rotary angles are scaled.
    shape.setdefault("head_dim", shape["hidden_size"] // shape["num_attention_heads"])
    return mixtral(
        num_local_experts=experts,
        num_experts_per_tok=source.randint(1, min(experts, 4)),
        router_aux_loss_coef=source.choice([0.001, 0.02, 0.5]),
        sliding_window=window(source),
        **shape,
    )


def a_dbrx(source: random.Random) -> dict:
    count, key_value_heads, head_dim = heads(source)
    experts = source.randint(3, 17)
    routing = {
        "ffn_hidden_size": source.randint(3, 30),
        "moe_num_experts": experts,
        "moe_top_k": source.randint(1, min(experts, 5)),
        "moe_loss_weight": source.choice([0.01, 0.05, 0.5]),
    }
    # Left out, as on the hub, it is 1.
    if (norm := source.choice(["left out", 1.0, 2.0, 3.0, None])) != "left out":
        routing["moe_normalize_expert_weights"] = norm
    return dbrx(
        attention={"kv_n_heads": key_value_heads, "clip_qkv": source.choice([0.7, 1.5, 3, 8])},
        experts=routing,
        theta=source.choice([500.0, 10000.0, 500000.0]),
        n_heads=count,
        d_model=count * head_dim,
        n_layers=source.randint(1, 3),
        vocab_size=source.choice([97, 101, 128]),
    )


FAMILIES: list[Callable[[random.Random], dict]] = [a_llama, a_mistral, a_mixtral, a_dbrx]


def write_model(folder: Path, number: int, source: random.Random) -> tuple[dict, list[str]]:
    """A random model's folder, spelt as on the hub or as transformers 5 does it; returns the config as drawn and the names of
    the tensors."""
    folder.mkdir()
    config = FAMILIES[number % len(FAMILIES)](source)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    if source.random() < 0.5:
        written_by_transformers = AutoConfig.from_pretrained(folder).to_json_string()
        (folder / "config.json").write_text(written_by_transformers)
    model = oracle.from_config(folder)
    oracle.fill_with_noise(model, number)
    in_memory = dict(model.named_parameters())
    names = in_memory.keys() if source.random() < 0.5 else oracle.on_disk(model, in_memory).keys()
    save_file(oracle.weights_like(model, names), folder / "model.safetensors", metadata={"format": "pt"})
    tiny.write_tokenizer(folder)
    return config, list(names)


def plan_of(source: random.Random) -> tiny.Plan:
    """Three steps over single examples, or over all examples in packed rows and a few empty ones."""
    micro_batch = source.choice([1, 2, "auto"])
    if source.random() < 0.5:
        return tiny.Plan(3, 1, rows=4, packing="none", micro_batch=micro_batch, epsilon=EPSILON)
    return tiny.Plan(3, 1, rows=PAIRS + source.choice([0, 2]), packing="best_fit", micro_batch=micro_batch, epsilon=EPSILON)


def compare(number: int, folder: Path) -> bool | None:
    """Whether a case holds; nothing where rounding may decide."""
    source = random.Random(number)
    config, tensors = write_model(folder / "model", number, source)
    plan = plan_of(source)
    pairs = tiny.write_examples(folder / "train.jsonl", PAIRS, seed=number)
    model = oracle.from_folder(folder / "model")
    curves = tiny.train_with_torch(model, plan, tiny.batches_of(plan, pairs))
    name = f"{number:3} {config['model_type']}, {plan.packing}"
    if curves.router_gap < LEAST_ROUTER_GAP:
        print(f"skip {name}: a router's choice hangs on {curves.router_gap:.1e}")
        return None
    try:
        run = tiny.train_with_tessera(folder, "run", plan, save_interval="3ba")
        found = tiny.differences(run, curves, oracle.weights_like(model, tensors))
        holds = all(difference <= limit for difference, limit in found.values())
        what = ", ".join(f"{key} {difference:.0e}" for key, (difference, _) in found.items())
    except tessera.RunFailed as error:
        holds, what = False, str(error)
    print(f"{'ok  ' if holds else 'FAIL'} {name}: {what}")
    if not holds:
        print(f"     {plan}\n     {json.dumps(config)}")
    return holds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=0, help="the first case's number")
    parser.add_argument("--cases", type=int, default=24)
    arguments = parser.parse_args()
    oracle.prepare()
    results = []
    for number in range(arguments.first, arguments.first + arguments.cases):
        with tempfile.TemporaryDirectory() as temporary:
            results.append(compare(number, Path(temporary)))
    held, failed, skipped = (results.count(result) for result in (True, False, None))
    print(f"sweep: {held} of {len(results)} cases hold, {failed} fail, {skipped} skipped")
    return 1 if False in results else 0


if __name__ == "__main__":
    sys.exit(main())
