"""The sizes at which the paper's tables can be made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from rskd.reproduction.methods import OURS
from rskd.reproduction.tables import TABLES, TASKS

_OF_TOKENS = tuple(name for name in TABLES if name not in ("table6", "table7", "table19"))  # no downstream scores


@dataclass(frozen=True)
class SmallModels:
    """Models of a few million parameters, whose teacher and tokenizer are trained here, on text of their own."""

    vocab_size: int
    teacher: Mapping[str, Any]  # architecture: settings of LlamaConfig
    student: Mapping[str, Any]
    sizes: tuple[Mapping[str, Any], ...]  # of other students, one for each of SIZES
    train_teacher: Mapping[str, Any]  # settings of TrainConfig


@dataclass(frozen=True)
class Scale:
    """Settings of a `DistillConfig`; its teacher and students are those of `small`, where that is given."""

    config: Mapping[str, Any]
    small: SmallModels | None = None
    sizes: tuple[Mapping[str, Any], ...] = ()  # `StudentSpec` of other students, one for each of SIZES
    tables: tuple[str, ...] = _OF_TOKENS  # made by default
    more_seeds: Mapping[str, int] = field(default_factory=dict)  # of a method, where its tables have less
    gradient_windows: int = 512  # in the batch of Table 3


def _llama(hidden: int, layers: int, heads: int, intermediate: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "intermediate_size": intermediate,
        "tie_word_embeddings": True,
    }


def _narrow_llama(hidden: int, intermediate: int) -> dict[str, Any]:
    """Wide enough initial weights that it leaves its first plateau soon, whatever the seed."""
    return _llama(hidden, 2, 4, intermediate) | {"initializer_range": hidden**-0.5}


_ON_ONE_CORE = {
    "workers": 0,
    "gpus_per_worker": 0,
    "threads_per_worker": 1,
    "precision": "float32",
    "micro_batch": 16,
    "global_batch": 16,
}
_EVALUATE_ON_CPU = {"gpus": 0, "batch_windows": 4}
_EVALUATE_ON_GPU = {"gpus": 1, "batch_windows": 4}

IN_ONE_PROCESS = {"ray": {"enabled": False}, "tracking": {"enabled": False}}
_ON_GPUS = {"workers": 8, "gpus_per_worker": 1}
_TEACHER_3B = {"model": "meta-llama/Llama-3.2-3B", "workers": 8, "gpus_per_worker": 1}

# A teacher of 3.0M parameters on 8.2M tokens, students of 0.6M on 1.2M.
_SMALL_CORPUS = {"seq_len": 256, "eval_windows": 256, "max_windows": 9600, "windows_per_part": 256}
_SMALL_TRAIN = _ON_ONE_CORE | {
    "steps": 1200,
    "micro_batch": 4,
    "global_batch": 4,
    "lr": 6e-3,
    "min_lr": 6e-4,
    "checkpoint_every": 1200,
}
_SMALL_SEEDS = {OURS: 10, "full_kd": 10}  # three leave their difference in ECE uncertain by more than 1%
_SMALL_MODELS = SmallModels(
    vocab_size=4096,
    teacher=_llama(256, 3, 4, 512),
    student=_narrow_llama(96, 256),
    sizes=(_narrow_llama(48, 128), _narrow_llama(144, 384), _narrow_llama(192, 512)),
    train_teacher=_ON_ONE_CORE
    | {"threads_per_worker": 2, "steps": 2000, "lr": 2e-3, "min_lr": 2e-4, "checkpoint_every": 100},
)

SCALES: dict[str, Scale] = {
    "cpu-small": Scale(
        {
            "corpus": _SMALL_CORPUS,
            "teacher": {"dtype": "float32", "workers": 2, "gpus_per_worker": 0, "threads_per_worker": 1},
            "train": _SMALL_TRAIN,
            "evaluate": _EVALUATE_ON_CPU,
        },
        _SMALL_MODELS,
        more_seeds=_SMALL_SEEDS,
    ),
    # The same on one GPU, without Ray and MLflow.
    "gpu-1": Scale(
        IN_ONE_PROCESS
        | {
            "corpus": _SMALL_CORPUS,
            "teacher": {"dtype": "float32", "gpus_per_worker": 1},
            "train": _SMALL_TRAIN | {"gpus_per_worker": 1},
            "evaluate": _EVALUATE_ON_GPU,
        },
        replace(_SMALL_MODELS, train_teacher={**_SMALL_MODELS.train_teacher, "gpus_per_worker": 1}),
        more_seeds=_SMALL_SEEDS,
    ),
    # Paper, Table 14; its own teacher was not published.
    "paper": Scale(
        {
            "corpus": {"seq_len": 1024, "eval_windows": 4096, "windows_per_part": 1024},
            "teacher": _TEACHER_3B,
            "student": {"preset": "300m"},
            "train": {"steps": 10_000, "global_batch": 1024, "micro_batch": 16} | _ON_GPUS,
            "evaluate": _EVALUATE_ON_GPU,
        },
        tables=("table1", "table2", "table5", "table9", "table10", "table12", "table13"),
    ),
    # Table 6: the same for 100B tokens.
    "paper-100b": Scale(
        {
            "corpus": {"seq_len": 1024, "eval_windows": 4096, "windows_per_part": 1024},
            "teacher": _TEACHER_3B,
            "student": {"preset": "300m"},
            "train": {"steps": 95_367, "global_batch": 1024, "micro_batch": 16} | _ON_GPUS,
            "evaluate": _EVALUATE_ON_GPU | {"tasks": list(TASKS)},
        },
        tables=("table6",),
    ),
    # Tables 7, 15, 19 and Figure 4: an 8B teacher, a 3B student for 100B tokens, other sizes for 30 tokens a parameter.
    # Table 15 has 10,000 steps, which at its batch are 42B tokens.
    "paper-8b": Scale(
        {
            "corpus": {"seq_len": 4096, "eval_windows": 1024, "windows_per_part": 256},
            "teacher": {"model": "meta-llama/Meta-Llama-3-8B", "workers": 8, "gpus_per_worker": 1},
            "student": {"preset": "3b"},
            "train": {"steps": 23_842, "global_batch": 1024, "micro_batch": 2, "lr": 3e-4, "min_lr": 3e-5} | _ON_GPUS,
            "evaluate": _EVALUATE_ON_GPU | {"tasks": list(TASKS)},
        },
        sizes=tuple(
            {"student": {"preset": preset}, "train": {"steps": steps}}
            for preset, steps in (("100m", 715), ("300m", 2146), ("1b", 7153))
        ),
        tables=("table7", "table19", "figure4"),
    ),
    # The smallest that goes the whole way: it separates nothing.
    "tiny": Scale(
        {
            "corpus": {"seq_len": 32, "eval_windows": 8, "max_windows": 512, "windows_per_part": 512},
            "teacher": {"dtype": "float32", "gpus_per_worker": 0, "threads_per_worker": 1},
            "train": _ON_ONE_CORE | {"steps": 6, "global_batch": 8, "lr": 1e-2, "min_lr": 1e-3},
            "evaluate": _EVALUATE_ON_CPU,
        },
        SmallModels(
            vocab_size=512,
            teacher=_llama(32, 1, 2, 64),
            student=_llama(16, 1, 2, 32),
            sizes=(_llama(8, 1, 2, 16), _llama(24, 1, 2, 48), _llama(32, 1, 2, 64)),
            train_teacher=_ON_ONE_CORE | {"steps": 20, "global_batch": 8, "lr": 1e-2, "min_lr": 1e-3},
        ),
        gradient_windows=16,
    ),
}
