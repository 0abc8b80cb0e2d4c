#!/usr/bin/env python3
"""Makes a Mixtral of a Llama: every expert is a copy of the block's feed-forward layer, and the routers are random. Routing
weights sum to one, so whatever the routers choose the model says what the Llama says.

  upcycle.py LLAMA_FOLDER MIXTRAL_FOLDER [--experts 4] [--top-k 2]

Both are folders in Hugging Face layout, the Llama's with one model.safetensors.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

# Mixtral's names of a Llama's three matrices.
MATRICES = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
# What a Llama's config says and a Mixtral's has no word for.
LLAMA_ONLY = ("attention_bias", "mlp_bias", "pretraining_tp")
ROUTER_SEED, ROUTER_DEVIATION = 17, 1.0


def mixtral_config(llama: dict, experts: int, top_k: int) -> dict:
    """The config of the Mixtral; its coefficient and jitter are the hub's."""
    if biases := [key for key in ("attention_bias", "mlp_bias") if llama.get(key)]:
        raise SystemExit(f"upcycle: the Llama has biases ({', '.join(biases)}), a Mixtral has none")
    return {
        **{key: value for key, value in llama.items() if key not in LLAMA_ONLY},
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "num_local_experts": experts,
        "num_experts_per_tok": top_k,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.02,
        "router_jitter_noise": 0.0,
        "sliding_window": None,
    }


def mixtral_tensors(weights: Path, config: dict) -> dict[str, torch.Tensor]:
    """The Llama's tensors under Mixtral's names, feed-forward layers once for each expert, and a router a block."""
    generator = torch.Generator().manual_seed(ROUTER_SEED)
    tensors = {}
    with safe_open(weights, framework="pt") as llama:
        for name in llama.keys():
            block, is_feed_forward, matrix = name.partition(".mlp.")
            tensor = llama.get_tensor(name)
            if not is_feed_forward:
                tensors[name] = tensor
                continue
            mixtral_name = MATRICES[matrix.removesuffix(".weight")]
            for expert in range(config["num_local_experts"]):
                tensors[f"{block}.block_sparse_moe.experts.{expert}.{mixtral_name}.weight"] = tensor.clone()
    for block in range(config["num_hidden_layers"]):
        noise = torch.randn(config["num_local_experts"], config["hidden_size"], generator=generator)
        name = f"model.layers.{block}.block_sparse_moe.gate.weight"
        tensors[name] = (ROUTER_DEVIATION / config["hidden_size"] ** 0.5 * noise).to(tensor.dtype)
    return tensors


def upcycle(llama: Path, mixtral: Path, experts: int = 4, top_k: int = 2) -> None:
    """Writes the Mixtral's folder."""
    mixtral.mkdir(parents=True)
    config = mixtral_config(json.loads((llama / "config.json").read_text()), experts, top_k)
    (mixtral / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for path in llama.iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            shutil.copy(path, mixtral / path.name)
    save_file(mixtral_tensors(llama / "model.safetensors", config), mixtral / "model.safetensors", metadata={"format": "pt"})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("llama", type=Path)
    parser.add_argument("mixtral", type=Path)
    parser.add_argument("--experts", type=int, default=4)
    parser.add_argument("--top-k", type=int, default=2)
    arguments = parser.parse_args()
    upcycle(arguments.llama, arguments.mixtral, arguments.experts, arguments.top_k)
    return 0


if __name__ == "__main__":
    sys.exit(main())
