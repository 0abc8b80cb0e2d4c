#!/usr/bin/env python3
"""Opens one of our checkpoint folders with PyTorch and compares its weights with a safetensors file.

    check_dcp.py FOLDER EXPECTED.safetensors

EXPECTED holds weights under their Hugging Face names, as an export does. Both ways by which PyTorch opens a
checkpoint without a process group are used: `dcp.load` into tensors that exist, and `dcp_to_torch_save`, which
builds the nested state from the paths in the metadata. A folder to try it on is written by
`TESSERA_DCP_FOLDER=FOLDER cargo test -p tessera-checkpoint --test dcp a_folder_for_pytorch`, with FOLDER.safetensors
beside it.
"""

import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

folder, expected_file = sys.argv[1:]
expected = load_file(expected_file)
# An export leaves a tied head out; a checkpoint holds it as a second name of the embedding.
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
if HEAD not in expected and EMBEDDING in expected:
    if f"state.model.model.{HEAD}" in dcp.FileSystemReader(folder).read_metadata().state_dict_metadata:
        expected[HEAD] = expected[EMBEDDING]


def compare(how, found):
    for name, tensor in expected.items():
        other = found[f"model.{name}"]
        assert other.dtype == tensor.dtype and other.shape == tensor.shape, (how, name, other.dtype, other.shape)
        assert torch.equal(other, tensor), (how, name)
    print(f"{how}: {len(expected)} tensors are equal")


state = {"state": {"model": {f"model.{name}": torch.full_like(tensor, 7) for name, tensor in expected.items()}}}
dcp.load(state, storage_reader=dcp.FileSystemReader(folder), no_dist=True)
compare("dcp.load", state["state"]["model"])

with tempfile.TemporaryDirectory() as temporary:
    path = Path(temporary) / "whole.pt"
    dcp_to_torch_save(folder, path)
    whole = torch.load(path, weights_only=False)
extra = whole["state"]["model"].keys() - {f"model.{name}" for name in expected}
assert not extra, f"weights that are not expected: {sorted(extra)}"
compare("dcp_to_torch_save", whole["state"]["model"])


def show(value, indent="  "):
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(item, dict) or (isinstance(item, list) and any(isinstance(part, dict) for part in item)):
            print(f"{indent}{key}:")
            show(item, indent + "  ")
        else:
            described = f"{item.dtype} {tuple(item.shape)}" if isinstance(item, torch.Tensor) else repr(item)
            print(f"{indent}{key}: {described[:100]}")


print(f"torch {torch.__version__}; besides the weights:")
show({**whole, "state": {key: item for key, item in whole["state"].items() if key != "model"}})
