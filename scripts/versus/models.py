"""The models and tokens that a step is compared on: what both engines read from one folder."""

import json
import random
from pathlib import Path
from typing import NamedTuple

VOCABULARY = 32000
END = VOCABULARY - 1
ROWS, CONTEXT = 4, 512
SHARED = {"vocab_size": VOCABULARY, "tie_word_embeddings": False, "torch_dtype": "float32", "bos_token_id": None, "eos_token_id": END}
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
}
# Without a load-balancing loss, of which the two engines take different means (README, Models).
MIXTRAL = {
    **LLAMA,
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "router_aux_loss_coef": 0.0,
    "output_router_logits": False,
    "sliding_window": None,
}
DBRX = {
    "architectures": ["DbrxForCausalLM"],
    "model_type": "dbrx",
    "d_model": 512,
    "n_heads": 8,
    "n_layers": 4,
    "max_seq_len": CONTEXT,
    "attn_config": {"clip_qkv": 8, "kv_n_heads": 4, "rope_theta": 10000.0},
    "ffn_config": {
        "ffn_hidden_size": 512,
        "moe_num_experts": 16,
        "moe_top_k": 4,
        "moe_loss_weight": 0.0,
        "moe_normalize_expert_weights": 1.0,
        "ffn_act_fn": {"name": "silu"},
    },
    "output_router_logits": False,
}


class Case(NamedTuple):
    """A model, and its floating-point operations of one step where they are told."""

    title: str
    config: dict
    operations: float | None = None


def llama_operations() -> float:
    """Of a step of LLAMA: products forward and twice backward, and attention's over the causal half (two and five)."""
    hidden, heads, key_value = 512, 8 * 64, 4 * 64
    block = hidden * (heads + 2 * key_value) + heads * hidden + 3 * hidden * 1376
    tokens = ROWS * CONTEXT
    return 6.0 * tokens * (8 * block + VOCABULARY * hidden) + 8 * 7 * tokens * CONTEXT * heads


CASES = {
    "llama": Case("Llama, 56 M parameters", LLAMA, llama_operations()),
    "mixtral": Case("Mixtral, 2 of 8 experts", MIXTRAL),
    "dbrx": Case("DBRX, 4 of 16 experts", DBRX),
}


def tokens(steps: int) -> list[int]:
    """The text's token ids, without the end token that closes the document. Low ids are frequent, so that there is
    something to learn and the losses move."""
    source = random.Random(17)
    return [int(END * source.random() ** 4) for _ in range(steps * ROWS * CONTEXT - 1)]


def write(folder: Path, case: Case, steps: int) -> None:
    """The model's folder with random weights, its tokenizer of whole words, and the text."""
    import torch
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM

    model_folder = folder / "model"
    model_folder.mkdir(parents=True)
    config = json.dumps({**SHARED, **case.config})
    (model_folder / "config.json").write_text(config)
    torch.manual_seed(17)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model_folder), dtype=torch.float32)
    model.save_pretrained(model_folder)
    # Written anew: our run reads the hub's spelling.
    (model_folder / "config.json").write_text(config)
    end = f"w{END}"
    tokenizer = Tokenizer(models.WordLevel({f"w{index}": index for index in range(VOCABULARY)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(end, special=True)])
    tokenizer.save(str(model_folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end}
    (model_folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "text.txt").write_text(" ".join(f"w{token}" for token in tokens(steps)))
