"""Conversations on Ray: two workers make the cache of one, and two that train have its losses."""

import json
from pathlib import Path
from typing import Any

import pytest
from chat_runs import made, make_chat_teacher, write_jsonl
from tiny_runs import tiny_settings

from rskd.cache.reader import LogitCache
from rskd.config import DistillConfig, validate_config
from rskd.config.distillation import merge
from rskd.jobs.cache import cache_logits
from rskd.jobs.pack import pack_corpus
from rskd.jobs.train import train_student

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_local")]

STEPS = 4


def test_two_workers_do_what_one_does(tmp_path: Path, tiny_teacher_dir: Path):
    teacher = make_chat_teacher(tmp_path / "teacher", tiny_teacher_dir)
    text = write_jsonl(tmp_path / "text" / "a.jsonl", made(60)).parent
    corpus = {"kind": "chat", "source": {"kind": "jsonl", "uri": str(text)}, "seq_len": 127}
    train = {"steps": STEPS, "global_batch": 4, "lr": 0.003, "checkpoint_every": STEPS}
    settings = tiny_settings(
        tmp_path,
        teacher,
        corpus=corpus | {"eval_windows": 3, "windows_per_part": 4},
        train=train,
        students={"kd": {}, "ce": {"objective": {"kind": "ce"}}},
    )

    def run(name: str, workers: int, micro_batch: int) -> tuple[list[str], list[float]]:
        """The digests of the cache's parts, and the losses of both students."""
        on_ray = {"ray": {"enabled": True}} if workers else {}
        each: dict[str, Any] = {"teacher": {"workers": max(1, workers)}, "train": {"workers": workers}}
        each["train"]["micro_batch"] = micro_batch
        config = validate_config(merge(settings, each | on_ray | {"storage": {"root": str(tmp_path / name)}}))
        pack_corpus(config)
        cache_logits(config)
        parts = LogitCache.open(config.cache_uri("default")).manifest.parts
        return [part.sha256 for part in parts], [loss for student in ("kd", "ce") for loss in _losses(config, student)]

    parts, losses = run("here", 0, 4)
    assert len(losses) == 2 * STEPS
    for name, micro_batch in (("rows", 1), ("batches", 2)):
        assert run(name, 2, micro_batch) == (parts, pytest.approx(losses, rel=1e-5))


def _losses(config: DistillConfig, student: str) -> list[float]:
    train_student(config, student)
    log = Path(config.student_uri(student), "training_log.jsonl").read_text()
    return [json.loads(line)["loss"] for line in log.splitlines()]
