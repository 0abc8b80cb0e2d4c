#!/usr/bin/env python3
"""Makes the manifests of `crates/model/tests/manifests`: the name and shape of every tensor in the files of every model of
the catalogue, as transformers would save it. The models are built on torch's meta device, so none of them takes memory.

A file for each family holds its configs (`crates/model/src/catalogue/configs`) by name:
  blocks    how many there are; all alike, which is checked
  block     the tensors of one, {block} standing for its number
  outside   the other tensors
and, for Mixtral, `fused`: the tensors of a block as transformers 5 holds them in memory and as it saves them with
save_original_format=False.

What is taken for the files' names is held against files that save_pretrained wrote for a small model of the family.

  make_manifests.py            writes them
  make_manifests.py --check    compares them with what is there
"""

import argparse
import json
import re
import sys
import tempfile
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.core_model_loading import revert_weight_conversion

MODEL = Path(__file__).resolve().parents[2] / "crates/model"
BLOCK = re.compile(r"^(model\.layers|transformer\.blocks)\.(\d+)\.")
SMALL = {
    "hidden_size": 16,
    "d_model": 16,
    "intermediate_size": 24,
    "vocab_size": 40,
    "num_attention_heads": 4,
    "n_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "num_hidden_layers": 2,
    "n_layers": 2,
}
SMALL_INNER = {"kv_n_heads": 2, "ffn_hidden_size": 24}


def build(config: dict, device: str) -> torch.nn.Module:
    with torch.device(device):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))


def in_memory(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Tied tensors once."""
    return dict(model.named_parameters())


def on_disk(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return revert_weight_conversion(model, in_memory(model))


def shapes(tensors: dict[str, torch.Tensor]) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


def check_against_files(config: dict) -> None:
    """save_pretrained writes what on_disk and in_memory say."""
    small = {key: SMALL.get(key, value) for key, value in config.items()}
    for inner in ("attn_config", "ffn_config"):
        if inner in small:
            small[inner] = {key: SMALL_INNER.get(key, value) for key, value in small[inner].items()}
    model = build(small, "cpu")
    for original, expected in ((True, on_disk(model)), (False, in_memory(model))):
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder, save_original_format=original)
            with safe_open(Path(folder) / "model.safetensors", "pt") as file:
                found = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}
        if found != shapes(expected):
            sys.exit(f"{config['model_type']}: save_pretrained wrote {found}, not {shapes(expected)}")


def divided(tensors: dict[str, list[int]], layers: int) -> tuple[dict, dict]:
    """The tensors of a block, and those outside of blocks."""
    blocks, outside = [{} for _ in range(layers)], {}
    for name, shape in tensors.items():
        match = BLOCK.match(name)
        if match:
            blocks[int(match[2])][f"{match[1]}.{{block}}.{name[match.end():]}"] = shape
        else:
            outside[name] = shape
    if any(block != blocks[0] for block in blocks):
        sys.exit("the blocks differ")
    return blocks[0], outside


def manifest(config: dict) -> dict:
    model = build(config, "meta")
    layers = model.config.num_hidden_layers
    block, outside = divided(shapes(on_disk(model)), layers)
    result = {"blocks": layers, "outside": outside, "block": block}
    fused, _ = divided(shapes(in_memory(model)), layers)
    if fused != block:
        result["fused"] = fused
    return result


def text(value, indent: int = 0) -> str:
    """JSON with a line for each tensor."""
    if not isinstance(value, dict):
        return json.dumps(value)
    inner = " " * (indent + 2)
    lines = [f"{inner}{json.dumps(key)}: {text(value[key], indent + 2)}" for key in sorted(value)]
    return "{\n" + ",\n".join(lines) + "\n" + " " * indent + "}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    families: dict[str, dict] = {}
    for path in sorted((MODEL / "src/catalogue/configs").glob("*.json")):
        config = json.loads(path.read_text())
        family = families.setdefault(config["model_type"], {})
        if not family:
            check_against_files(config)
        family[path.stem] = manifest(config)
        print(path.stem)
    for family, manifests in families.items():
        path = MODEL / f"tests/manifests/{family}.json"
        if not check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text(manifests) + "\n")
        elif json.loads(path.read_text()) != manifests:
            sys.exit(f"{path} is not what transformers says; run make_manifests.py and look at the difference")


if __name__ == "__main__":
    main()
