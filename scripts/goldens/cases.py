"""The models of the goldens: a config.json each, of every family.

Sizes are small and odd on purpose: no kernel may rely on round ones. Some configs are spelt as on the hub (rope_theta,
rope_scaling, torch_dtype), some as transformers 5 itself writes them (rope_parameters, dtype).
"""

import json
from dataclasses import dataclass

from transformers import DbrxConfig, LlamaConfig, MixtralConfig


@dataclass
class Case:
    """A model's config.json and what its goldens hold."""

    name: str
    seed: int
    config: dict
    weights_after_three_steps: bool = False
    # Whether model.safetensors holds a Mixtral block's experts in two tensors, as transformers 5 does in memory and as
    # it saves them with save_original_format=False.
    fused_experts: bool = False


def hub(architecture: str = "LlamaForCausalLM", **changes) -> dict:
    """The config.json of a Llama or Mistral in the hub's spelling."""
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
    """A Llama's config as transformers 5 writes it."""
    settings = {k: v for k, v in hub().items() if k not in ("rope_theta", "rope_scaling", "torch_dtype")}
    settings.update(rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, dtype="float32")
    settings.update(changes)
    return json.loads(LlamaConfig(**settings).to_json_string())


def mixtral(**changes) -> dict:
    """The config.json of a Mixtral in the hub's spelling."""
    config = {
        "architectures": ["MixtralForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 16,
        "initializer_range": 0.02,
        "intermediate_size": 7,
        "max_position_embeddings": 128,
        "model_type": "mixtral",
        "num_attention_heads": 4,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "num_local_experts": 8,
        "output_router_logits": False,
        "rms_norm_eps": 1e-05,
        "rope_theta": 1000000.0,
        "router_aux_loss_coef": 0.02,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "use_cache": True,
        "vocab_size": 97,
    }
    config.update(changes)
    return config


def mixtral_transformers5(**changes) -> dict:
    """A Mixtral's config as transformers 5 writes it."""
    settings = {k: v for k, v in mixtral().items() if k not in ("rope_theta", "torch_dtype")}
    settings.update(rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}, dtype="float32")
    settings.update(changes)
    return json.loads(MixtralConfig(**settings).to_json_string())


def dbrx(attention: dict | None = None, experts: dict | None = None, theta: float = 500000, **changes) -> dict:
    """The config.json of a DBRX as on the hub, with the RoPE base named twice: the hub's attn_config.rope_theta, and the
    rope_parameters that transformers 5 needs (without them it takes 10,000)."""
    config = {
        "architectures": ["DbrxForCausalLM"],
        "attn_config": {"clip_qkv": 2, "kv_n_heads": 2, "model_type": "", "rope_theta": theta, **(attention or {})},
        "bos_token_id": 1,
        "d_model": 16,
        "emb_pdrop": 0.0,
        "eos_token_id": 2,
        "ffn_config": {
            "ffn_hidden_size": 5,
            "model_type": "",
            "moe_jitter_eps": 0,
            "moe_loss_weight": 0.05,
            "moe_num_experts": 16,
            "moe_top_k": 4,
            **(experts or {}),
        },
        "initializer_range": 0.02,
        "max_seq_len": 128,
        "model_type": "dbrx",
        "n_heads": 4,
        "n_layers": 2,
        "output_router_logits": False,
        "resid_pdrop": 0.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": float(theta)},
        "router_aux_loss_coef": 0.05,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "use_cache": True,
        "vocab_size": 97,
    }
    config.update(changes)
    return config


def dbrx_transformers5(**settings) -> dict:
    """A DBRX's config as transformers 5 writes it, nested configs with all their inherited keys."""
    config = dbrx(**settings)
    dtype = config.pop("torch_dtype")
    return json.loads(DbrxConfig(**config, dtype=dtype).to_json_string())


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
        weights_after_three_steps=True,
    ),
    Case("mixtral", 9, mixtral(), weights_after_three_steps=True),
    # The load-balancing loss weighs as much as the cross-entropy.
    Case(
        "mixtral_window",
        10,
        mixtral_transformers5(
            hidden_size=12, head_dim=6, sliding_window=5, num_local_experts=4, num_experts_per_tok=1, router_aux_loss_coef=1.0
        ),
    ),
    Case(
        "mixtral_fused",
        11,
        mixtral(
            hidden_size=18,
            num_attention_heads=3,
            num_key_value_heads=1,
            num_local_experts=5,
            num_experts_per_tok=3,
            tie_word_embeddings=True,
        ),
        fused_experts=True,
    ),
    Case("dbrx", 15, dbrx(), weights_after_three_steps=True),
    Case(
        "dbrx_unnormalised",
        13,
        dbrx(
            attention={"clip_qkv": 1.5, "kv_n_heads": 1},
            experts={"moe_normalize_expert_weights": None, "moe_num_experts": 6, "moe_top_k": 2, "moe_loss_weight": 1.0},
            n_heads=2,
        ),
    ),
    Case(
        "dbrx_euclidean",
        14,
        dbrx_transformers5(
            attention={"clip_qkv": 2.5},
            experts={"moe_normalize_expert_weights": 2.0, "moe_num_experts": 5, "moe_top_k": 3},
            theta=10000.0,
        ),
    ),
]
