"""The student model: which architecture, and where its weights come from.

    preset | model | the teacher's config ─► architecture ─► random | teacher_layers | checkpoint ─► fp32 weights

Weights are a pure function of (config, teacher, seed), so that every worker and every run starts from the same ones.
"""

from __future__ import annotations

from typing import Any

from transformers import LlamaConfig, PreTrainedConfig, PreTrainedModel

from rskd.config import StudentConfig
from rskd.errors import ConfigError
from rskd.models.load import check_attention, load_config, load_model, model_without_weights, new_model
from rskd.student.router_loss import balances_router, router_loss
from rskd.student.teacher_layers import copy_layers, thinned_config

PRESETS: dict[str, dict[str, Any]] = {
    # SmolLM2-135M: 106M parameters without the embeddings.
    "100m": {
        "num_hidden_layers": 30,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
    },
    # Paper, Table 17.
    "300m": {
        "num_hidden_layers": 24,
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
    },
    # Llama 3.2 1B.
    "1b": {
        "num_hidden_layers": 16,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
    },
    # Paper, Table 17; tied as in Llama 3.2 3B, which has the same shape.
    "3b": {
        "num_hidden_layers": 28,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
    },
}

_DEQUANTISED = ("mxfp4",)  # methods whose weights Transformers makes plain on loading (gpt-oss)


def build_student(
    config: StudentConfig,
    *,
    teacher_dir: str,
    vocab_size: int,
    seq_len: int,
    end_of_text_id: int,
    seed: int,
    isolated: bool = False,
) -> PreTrainedModel:
    """A causal LM on the CPU with fp32 master weights.

    A preset has exactly `vocab_size` ids. Any other architecture keeps its own
    vocabulary, which may be padded but not smaller; ids from `vocab_size` on are masked in the loss.

    Raises ConfigError for a model that does not exist or does not fit, and for an attention that is not installed.
    """
    architecture = student_architecture(
        config, teacher_dir=teacher_dir, vocab_size=vocab_size, seq_len=seq_len, end_of_text_id=end_of_text_id
    )
    if config.init == "checkpoint":
        assert config.model is not None  # StudentConfig checks it
        student = load_model(config.model, config.attention, isolated=isolated)
        vars(student.config).pop("quantization_config", None)  # of weights that were dequantised on loading
        return student
    student = new_model(architecture, config.attention, seed=seed, isolated=isolated, named="student")
    if config.init == "teacher_layers":
        copy_layers(load_model(teacher_dir, config.attention), student)
    return student


def student_architecture(
    config: StudentConfig, *, teacher_dir: str, vocab_size: int, seq_len: int, end_of_text_id: int
) -> PreTrainedConfig:
    """The configuration of the student, checked against the tokenizer and the windows. Raises ConfigError."""
    check_attention(config.attention, "student")
    if config.preset is not None:
        return LlamaConfig(
            **PRESETS[config.preset],
            vocab_size=vocab_size,
            max_position_embeddings=seq_len,
            bos_token_id=end_of_text_id,
            eos_token_id=end_of_text_id,
        )
    name = config.model or teacher_dir
    architecture = _without_quantization(load_config(name), name, config.init)
    if config.num_layers is not None:
        architecture = thinned_config(architecture, config.num_layers)
    text = architecture.get_text_config()
    if text.vocab_size < vocab_size:
        raise ConfigError(
            f"student {name} has {text.vocab_size} ids but the tokenizer has {vocab_size}: choose a model with as many"
        )
    limit = getattr(text, "max_position_embeddings", None)
    if limit is not None and limit < seq_len:
        raise ConfigError(f"student {name} takes {limit} positions but corpus.seq_len={seq_len}: lower seq_len")
    if balances_router(architecture):
        router_loss(model_without_weights(architecture))  # refuses what it does not know
    return architecture


def _without_quantization(config: PreTrainedConfig, name: str, init: str) -> PreTrainedConfig:
    """The configuration of plain weights, which a student's are; ConfigError where quantised ones would be read."""
    for section in (config, config.get_text_config()):
        quantization = vars(section).pop("quantization_config", None)
        if quantization is not None and init != "random":
            method = quantization if isinstance(quantization, dict) else vars(quantization)
            method = str(method.get("quant_method", "unknown")).rpartition(".")[2].lower()
            if method not in _DEQUANTISED:
                raise ConfigError(
                    f"student.init={init} reads the weights of {name}, which are quantised ({method}): name a model "
                    "that is not, or set student.init random"
                )
    return config
