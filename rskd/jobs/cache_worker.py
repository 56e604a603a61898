"""What a teacher actor does with one part of the corpus.

    read windows ─► batches of whole windows ─► teacher ─► output head and samplers, a few rows at a time ─► commit
    └─ storage ──┘  └──────────────── one part at a time, under a lock ────────────────────────────────┘  └ storage ┘

An actor runs in two threads, each with a part of its own: while one infers, the other writes what it has and reads what
comes next. So inference waits for storage only where that takes longer than inference, and memory holds two parts.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rskd.cache.codec import PartData
from rskd.cache.writer import CacheWriter
from rskd.config import SamplingConfig, TeacherConfig
from rskd.corpus.packed_corpus import PackedCorpus, Windows
from rskd.errors import ConfigError
from rskd.rng import position_keys
from rskd.storage import Store
from rskd.teacher.lm_head import SampledRows, sample_rows
from rskd.teacher.model_files import resolve_model
from rskd.teacher.sampling import Drawn, Sampling, concatenate
from rskd.teacher.transformers_teacher import TransformersTeacher


@dataclass(frozen=True)
class CacheRun:
    """All that a worker has to know; URIs and paths are absolute, since a worker has a working directory of its own."""

    corpus_uri: str
    teacher: TeacherConfig
    teacher_dir: str  # on the machine of the driver
    teachers_uri: str
    samplings: dict[str, SamplingConfig]  # by the name of the cache, as the next two
    cache_uris: dict[str, str]
    heads: dict[str, dict[str, Any]]


class TeacherWorker:
    """A Ray Data actor: `worker({"part": index, "caches": names})` writes that part of those caches.

    Returns who did it, the number of tokens, and the clock (s) when inference started and ended.
    """

    def __init__(self, run: CacheRun):
        torch.set_num_threads(run.teacher.threads_per_worker)
        self._run = run
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        Store(run.corpus_uri).expect()
        self._corpus = PackedCorpus.open(run.corpus_uri)
        self._writers = {name: CacheWriter(uri, manifest_head=run.heads[name]) for name, uri in run.cache_uris.items()}
        self._inference = threading.Lock()

    @cached_property
    def _teacher(self) -> TransformersTeacher:
        """Loaded for the first part: of an error in an actor's `__init__` Ray hands on the text alone."""
        config = self._run.teacher
        device = torch.device("cuda" if config.gpus_per_worker else "cpu")
        model_dir = self._run.teacher_dir
        if not Path(model_dir).is_dir():  # another machine of a cluster finds the teacher anew
            model_dir = resolve_model(config.model, revision=config.revision, teachers=self._run.teachers_uri)
        teacher = TransformersTeacher.load(config, model_dir=model_dir, device=device)
        rows, vocab_size = len(teacher.head.weight), self._corpus.manifest.tokenizer["vocab_size"]
        if rows < vocab_size:
            raise ConfigError(
                f"teacher {config.model} has {rows} output rows for {vocab_size} token ids: correct its tokenizer"
            )
        return teacher

    def __call__(self, task: dict[str, Any]) -> dict[str, Any]:
        part = self._corpus.manifest.parts[task["part"]]
        windows = self._corpus.read_part(part.index)
        with self._inference:
            teacher = self._teacher
            started = time.time()
            data = self._infer(teacher, windows, list(task["caches"]))
            ended = time.time()
        for name, part_data in data.items():
            self._writers[name].commit_part(part.index, part_data, corpus_sha256=part.sha256)
        tokens = part.rows * self._corpus.seq_len
        return {"worker": self._name, "tokens": tokens, "started": started, "ended": ended}

    def _infer(self, teacher: TransformersTeacher, windows: Windows, caches: list[str]) -> dict[str, PartData]:
        """The part's targets for each cache, from batches cut from its first row."""
        row_ids, input_ids = torch.from_numpy(windows.row_ids), torch.from_numpy(windows.input_ids).long()
        size = self._run.teacher.batch_windows
        batches = [self._sample(teacher, *batch, caches) for batch in zip(row_ids.split(size), input_ids.split(size))]
        if teacher.device.type == "cuda":
            torch.cuda.synchronize(teacher.device)
        shape = (len(row_ids), self._corpus.seq_len)
        data = {}
        for name in caches:
            drawn = concatenate([batch.drawn[name] for batch in batches])
            data[name] = PartData(
                windows.row_ids,
                windows.input_ids,
                ids=drawn.ids.numpy().reshape(*shape, -1),
                values=drawn.values.numpy().reshape(*shape, -1),
                statistics={
                    statistic: torch.cat([batch.statistics[statistic] for batch in batches]).numpy().reshape(shape)
                    for statistic in self._run.samplings[name].statistics
                },
            )
        return data

    @torch.inference_mode()
    def _sample(
        self, teacher: TransformersTeacher, row_ids: Tensor, input_ids: Tensor, caches: list[str]
    ) -> SampledRows:
        """All samplings and statistics of one batch of windows [B, S+1], on their way to the CPU."""
        manifest, run = self._corpus.manifest, self._run
        input_ids = input_ids.to(teacher.device)
        isolating_id = manifest.tokenizer["end_of_text_id"] if manifest.isolate_documents else None
        rows = sample_rows(
            teacher.hidden(input_ids[:, :-1], isolating_id),
            teacher.head,
            {name: Sampling.of(run.samplings[name].model_dump()) for name in caches},
            position_keys(row_ids, self._corpus.seq_len),
            vocab_size=manifest.tokenizer["vocab_size"],
            labels=input_ids[:, 1:],
            statistics={statistic for name in caches for statistic in run.samplings[name].statistics},
        )
        to_host = partial(Tensor.to, device="cpu", non_blocking=True)
        return SampledRows(
            {name: Drawn(to_host(drawn.ids.int()), to_host(drawn.values)) for name, drawn in rows.drawn.items()},
            {name: to_host(values) for name, values in rows.statistics.items()},
        )
