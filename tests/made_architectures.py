"""Every architecture of Transformers' causal-LM mapping as a tiny model, from its own configuration class."""

import inspect
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

MODEL_TYPES: tuple[str, ...] = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
_MOST_PARAMETERS = 20_000_000
_WIDTHS = dict.fromkeys(("hidden_size", "d_model", "n_embd", "n_embed", "dim", "dim_model"), 32)
_INNER = dict.fromkeys(
    ("intermediate_size", "ffn_hidden_size", "ffn_dim", "n_inner", "d_ff", "dim_ff", "encoder_ffn_dim"), 48
)
_DEPTHS = dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), 4)
_HEADS = dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4)
_POSITIONS = dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx"), 256)
_EXPERTS = dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), 4)
_SMALL: dict[str, Any] = {
    **_WIDTHS,
    **_INNER,
    **_DEPTHS,
    **_HEADS,
    **_POSITIONS,
    **_EXPERTS,
    "vocab_size": 64,
    "vocab_size_per_layer_input": 64,
    "hidden_size_per_layer_input": 8,
    "num_key_value_heads": 2,
    "decoder_ffn_dim": 48,
    "encoder_layers": 2,
    "num_encoder_layers": 2,
    "num_decoder_layers": 4,
    "encoder_attention_heads": 4,
    "num_encoder_attention_heads": 4,
    "num_decoder_attention_heads": 4,
    "moe_intermediate_size": 16,
    "expert_ffn_hidden_size": 16,
    "shared_expert_intermediate_size": 16,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_topk": 2,
    "zero_expert_num": 1,
    "head_dim": 8,
    "dim_head": 8,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "o_lora_rank": 16,
    "v_head_dim": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "index_n_heads": 2,
    "index_head_dim": 8,
    "index_topk": 64,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_d_ssm": 64,
    "mamba_n_groups": 1,
    "mamba_num_heads": 4,
    "mamba_head_dim": 8,
    "ssm_state_size": 8,
    "state_size": 8,
    "compress_rate": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "pronunciation_vocab_size": 16,
    "shape_vocab_size": 16,
    "prompt_types": 1,
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0),
    "is_decoder": True,
}
_LATENT = "axk1 axk2 deepseek_v2 deepseek_v3 deepseek_v32 glm4_moe_lite glm_moe_dsa longcat_flash minicpm3 youtu"
_ALTERNATING = {"layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"]}
_SPECIAL: dict[str, dict[str, Any]] = {
    **{model_type: {"num_key_value_heads": 4} for model_type in _LATENT.split()},
    "bamba": {"attn_layer_indices": [1, 3], "mamba_n_heads": 8, "mamba_d_head": 8},
    "codegen": {"rotary_dim": 4},
    "dots1": {"n_shared_experts": 1},
    "electra": {"embedding_size": 32},
    "gemma3n_text": {
        "num_kv_shared_layers": 0,
        "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
        "activation_sparsity_pattern": [0.0] * 4,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "gptj": {"rotary_dim": 4},
    "granitemoehybrid": {
        "layer_types": ["mamba", "attention"] * 2,
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "nemotron_h": {"n_groups": 1},
    "reformer": {
        "axial_pos_embds": False,
        "attn_layers": ["local", "lsh"] * 2,
        "attention_head_size": 8,
        "feed_forward_size": 48,
        "num_buckets": 4,
    },
    "rembert": {"input_embedding_size": 32, "output_embedding_size": 32},
    "zamba": _ALTERNATING,
    "zamba2": _ALTERNATING,
    "zaya": {"num_experts_per_tok": 1},
}


def tiny_config(model_type: str, **settings: Any) -> PreTrainedConfig:
    """A configuration of four narrow layers; raises whatever the architecture raises if it cannot be so small."""
    config_class = CONFIG_MAPPING[model_type]
    default = config_class()
    small = _small(default)
    for section in ("text_config", "vision_config", "audio_config"):
        if isinstance(getattr(default, section, None), PreTrainedConfig):
            small[section] = _small(getattr(default, section))
    config = config_class(**{**small, **_SPECIAL.get(model_type, {}), **settings})
    for part in (config, config.get_text_config()):
        for name in ("initializer_range", "init_std"):
            if hasattr(part, name):
                setattr(part, name, 0.3)  # large enough that contexts matter
    return config


def tiny_model(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """A model of this configuration with random weights in float32; ValueError if it is not small."""
    with torch.device("meta"):
        num_parameters = AutoModelForCausalLM.from_config(config).num_parameters()
    if num_parameters > _MOST_PARAMETERS:
        raise ValueError(f"{config.model_type} has {num_parameters} parameters")
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config).float().eval()


def _small(config: PreTrainedConfig) -> dict[str, Any]:
    """Those of the small settings that a configuration has."""
    names = {*vars(config), *(config.attribute_map or {}), *inspect.signature(type(config).__init__).parameters}
    return {name: value for name, value in _SMALL.items() if name in names}
