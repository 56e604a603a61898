"""Small made models of the architectures that people distil, with logits that spread; vocabularies are padded."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

VOCAB, ROWS_OF_HEAD, MAX_POSITIONS = 384, 400, 256
_COMMON: dict[str, Any] = {
    "vocab_size": ROWS_OF_HEAD,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": MAX_POSITIONS,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "qwen2": {},
    "qwen3": {"tie_word_embeddings": True},
    "mistral": {"sliding_window": None},
    "olmo2": {},
    "gemma2": {"final_logit_softcapping": 5.0, "query_pre_attn_scalar": 32, "sliding_window": 16},
    "gemma3_text": {"query_pre_attn_scalar": 32, "sliding_window": 16},
    "granite": {"logits_scaling": 4.0, "attention_multiplier": 0.17, "residual_multiplier": 0.5},
}


def make_model(architecture: str, directory: Path) -> Path:
    """Write a model of random weights in the Hugging Face layout."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **_COMMON | ARCHITECTURES[architecture])
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    return directory
