"""A distillation so small that each of its stages takes a second, in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from rskd.config import DistillConfig
from rskd.config.distillation import merge
from rskd.jobs.cache import cache_logits
from rskd.jobs.evaluate import evaluate_students
from rskd.jobs.pack import pack_corpus
from rskd.jobs.report import write_report
from rskd.jobs.train import train_student

STAGES: dict[str, Callable[[DistillConfig], Any]] = {
    "pack": pack_corpus,
    "cache": lambda config: cache_logits(config)["default"],
    "train": train_student,
    "evaluate": evaluate_students,
    "report": write_report,
}


def write_texts(folder: Path, numbers: range = range(8)) -> None:
    """CPython's own prose, a file for each of its topics."""
    folder.mkdir(exist_ok=True)
    for name in [sorted(topics)[number] for number in numbers]:
        (folder / f"{name}.txt").write_text(topics[name])


def tiny_settings(root: Path, model: Path, /, **sections: Any) -> dict[str, Any]:
    """Settings of a run of the teacher `model` that reads `root`/text and writes `root`/store, with `sections`."""
    return merge(
        {
            "name": "tiny",
            "storage": {"root": str(root / "store")},
            "corpus": {"source": {"kind": "text", "uri": str(root / "text")}, "seq_len": 16, "eval_windows": 2},
            "teacher": {"model": str(model), "dtype": "float32", "threads_per_worker": 1},
            "train": {"steps": 2, "global_batch": 2, "precision": "float32", "workers": 0, "threads_per_worker": 1},
            "evaluate": {"max_windows": 2},
            "ray": {"enabled": False},
            "tracking": {"enabled": False},
        },
        sections,
    )
