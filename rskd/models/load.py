"""Loading a causal language model of either side."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from rskd.errors import ConfigError
from rskd.models.causal_lm import exact_attention


def load_model(directory: str, attention: str) -> PreTrainedModel:
    """A pretrained causal LM (directory or hub id) in fp32 on the CPU; safetensors only. Raises ConfigError."""
    attention = exact_attention(load_architecture(directory), attention)
    try:
        return AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=torch.float32,
            attn_implementation=attention,
            use_safetensors=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"model {directory} cannot be loaded ({_first_line(error)}): name a causal LM") from None


def load_architecture(name: str) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model {name} cannot be loaded ({_first_line(error)}): name a causal LM") from None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:160]
