"""The student model: which architecture, and where its weights come from.

    preset | model | the teacher's config ─► architecture ─► random | teacher_layers | checkpoint ─► fp32 weights

Weights are a pure function of (config, teacher, seed), so that every worker and every run starts from the same ones.
"""

from __future__ import annotations

import copy
from typing import Any

from transformers import LlamaConfig, PreTrainedConfig, PreTrainedModel

from rskd.config import StudentConfig
from rskd.errors import ConfigError
from rskd.models.load import check_attention, load_config, load_model, new_model

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

    A preset has exactly `vocab_size` ids (the length of the tokenizer). Any other architecture keeps its own
    vocabulary, which may be padded but not smaller; ids from `vocab_size` on are masked in the loss.

    Raises ConfigError for a model that does not exist or does not fit, and for an attention that is not installed.
    """
    architecture = student_architecture(
        config, teacher_dir=teacher_dir, vocab_size=vocab_size, seq_len=seq_len, end_of_text_id=end_of_text_id
    )
    if config.init == "checkpoint":
        assert config.model is not None  # StudentConfig checks it
        return load_model(config.model, config.attention, isolated=isolated)
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
    architecture = load_config(name)
    if config.num_layers is not None:
        architecture = _with_layers(architecture, config.num_layers)
    text = architecture.get_text_config()
    if text.vocab_size < vocab_size:
        raise ConfigError(
            f"student {name} has {text.vocab_size} ids but the tokenizer has {vocab_size}: choose a model with as many"
        )
    limit = getattr(text, "max_position_embeddings", None)
    if limit is not None and limit < seq_len:
        raise ConfigError(f"student {name} takes {limit} positions but corpus.seq_len={seq_len}: lower seq_len")
    return architecture


def kept_layers(num_teacher_layers: int, num_layers: int) -> list[int]:
    """Indices of the teacher's layers that a student keeps: evenly spread, the first and the last among them.

    Layer i of n is the teacher's round(i·(L-1)/(n-1)); a student of one layer keeps the first.
    """
    steps = max(num_layers - 1, 1)
    return [(2 * i * (num_teacher_layers - 1) + steps) // (2 * steps) for i in range(num_layers)]


def copy_layers(teacher: PreTrainedModel, student: PreTrainedModel) -> None:
    """Copy embeddings, final norm, head and the layers `kept_layers` of `teacher` into a shallower `student`."""
    prefix = next(name for name, module in teacher.named_modules() if module is teacher.get_decoder().layers) + "."
    depth, kept_depth = (model.config.get_text_config().num_hidden_layers for model in (teacher, student))
    kept = kept_layers(depth, kept_depth)
    renamed = {f"{prefix}{old}.": f"{prefix}{new}." for new, old in enumerate(kept)}
    state = {}
    for name, tensor in teacher.state_dict().items():
        if not name.startswith(prefix):
            state[name] = tensor
            continue
        layer = prefix + name[len(prefix) :].split(".", 1)[0] + "."
        if layer in renamed:
            state[renamed[layer] + name[len(layer) :]] = tensor
    student.load_state_dict(state)


def _with_layers(teacher: PreTrainedConfig, num_layers: int) -> PreTrainedConfig:
    """The teacher's configuration with fewer layers; lists with one entry for each layer are thinned alike."""
    config = copy.deepcopy(teacher)
    text = config.get_text_config()
    total = text.num_hidden_layers
    if num_layers > total:
        raise ConfigError(f"student.num_layers={num_layers} exceeds the teacher's {total} layers: lower it")
    kept = kept_layers(total, num_layers)
    for name, value in vars(text).items():
        if isinstance(value, list) and len(value) == total:
            setattr(text, name, [value[index] for index in kept])
    text.num_hidden_layers = num_layers
    return config
