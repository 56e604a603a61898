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
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from rskd import tracking
from rskd.cache.codec import PartData
from rskd.cache.writer import CacheWriter
from rskd.config import PlannedTeacher, SamplingConfig
from rskd.corpus.packed_corpus import PackedCorpus, Windows
from rskd.errors import ConfigError
from rskd.jobs.metrics import Live
from rskd.models.files import resolve_model
from rskd.rng import position_keys
from rskd.storage import Store
from rskd.teacher.hidden_to_targets import Order, SampledRows
from rskd.teacher.plausibility import doubt_teacher
from rskd.teacher.sampling import Drawn, Sampling, concatenate
from rskd.teacher.transformers_teacher import TransformersTeacher


@dataclass(frozen=True)
class CacheRun:
    """All that a worker has to know; URIs and paths are absolute, since a worker has a working directory of its own."""

    corpus_uri: str
    teacher: PlannedTeacher
    teacher_dir: str  # on the machine of the driver
    teachers_uri: str
    samplings: dict[str, SamplingConfig]  # by the name of the cache, as the next two
    cache_uris: dict[str, str]
    heads: dict[str, dict[str, Any]]
    runtime_env: dict[str, Any]  # of the workers
    monitored: tracking.Run | None = None  # by workers on other machines than the driver's
    live: Live | None = None


class Teacher(Protocol):
    """What a worker needs of a teacher, whichever its engine."""

    @property
    def device(self) -> torch.device: ...
    @property
    def num_ids(self) -> int: ...
    def sample(
        self,
        input_ids: Tensor,
        keys: Tensor,
        order: Order,
        end_of_text_id: int | None = None,
        places: Tensor | None = None,
    ) -> SampledRows: ...


class TeacherWorker:
    """A Ray Data actor: `worker({"part": index, "caches": names, "is_first": bool})` writes that part of those caches.

    Returns who did it, the number of tokens, the bytes of the written part files, the clock (s) when inference started
    and ended, and of the first part the `doubt` that the teacher is a model of this text.
    """

    def __init__(self, run: CacheRun):
        torch.set_num_threads(run.teacher.threads_per_worker)
        self._run = run
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        Store(run.corpus_uri).expect()
        self._corpus = PackedCorpus.open(run.corpus_uri)
        self._writers = {name: CacheWriter(uri, manifest_head=run.heads[name]) for name, uri in run.cache_uris.items()}
        self._inference = threading.Lock()
        self._monitoring = ExitStack()  # until the actor's process ends
        self._monitoring.enter_context(tracking.monitored(run.monitored))
        if run.live is not None:
            run.live.restarted()

    @cached_property
    def _teacher(self) -> Teacher:
        """Loaded for the first part: of an error in an actor's `__init__` Ray hands on the text alone."""
        config = self._run.teacher
        model_dir = self._run.teacher_dir
        if not Path(model_dir).is_dir():  # another machine of a cluster finds its own copy
            model_dir = resolve_model(config.model, revision=config.revision, teachers=self._run.teachers_uri)
        teacher = _load(config, model_dir, self._corpus)
        vocab_size = self._corpus.manifest.tokenizer["vocab_size"]
        if teacher.num_ids < vocab_size:
            raise ConfigError(
                f"teacher {config.model} has {teacher.num_ids} output rows, the corpus has {vocab_size} ids: correct "
                "vocab_size in its config.json, or its tokenizer, and run rskd pack again"
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
        committed = [
            self._writers[name].commit_part(part.index, part_data, corpus_sha256=part.sha256)
            for name, part_data in data.items()
        ]
        doubt = None
        if task["is_first"]:
            label_logprob = data[task["caches"][0]].statistics["label_logprob"]
            doubt = doubt_teacher(
                *(_learned(values, windows) for values in (label_logprob, windows.input_ids[:, 1:])),
                vocab_size=self._corpus.manifest.tokenizer["vocab_size"],
            )
        tokens = part.rows * self._corpus.seq_len
        num_bytes = sum(one.bytes for one in committed)
        clock = {"started": started, "ended": ended}
        return {"worker": self._name, "tokens": tokens, "bytes": num_bytes, "doubt": doubt} | clock

    def try_batch(self, size: int) -> None:
        """The windows of a batch, those of the first part again and again, through the teacher and all samplers."""
        input_ids = torch.from_numpy(self._corpus.read_part(0).input_ids).long()
        rows = torch.arange(size)
        self._sample(self._teacher, rows, input_ids[rows % len(input_ids)], None, list(self._run.samplings))

    def _infer(self, teacher: Teacher, windows: Windows, caches: list[str]) -> dict[str, PartData]:
        """The part's targets for each cache, from batches cut from its first row; vLLM cuts its own.

        Each has all statistics: the writer stores those of its cache, and sums up `label_logprob` in any case.
        Positions without a loss have no entries, and statistics of 0.
        """
        row_ids, input_ids = torch.from_numpy(windows.row_ids), torch.from_numpy(windows.input_ids).long()
        has_loss = None if windows.has_loss is None else torch.from_numpy(windows.has_loss)
        size = len(row_ids) if self._run.teacher.engine == "vllm" else self._run.teacher.batch_windows
        masks = [None] * len(row_ids) if has_loss is None else has_loss.split(size)
        slices = zip(row_ids.split(size), input_ids.split(size), masks)
        batches = [self._sample(teacher, *batch, caches) for batch in slices]
        if teacher.device.type == "cuda":
            torch.cuda.synchronize(teacher.device)
        everywhere = partial(_everywhere, has_loss=has_loss, shape=(len(row_ids), self._corpus.seq_len))
        names = batches[0].statistics
        statistics = {name: everywhere(torch.cat([batch.statistics[name] for batch in batches])) for name in names}
        data = {}
        for name in caches:
            drawn = concatenate([batch.drawn[name] for batch in batches])
            if has_loss is not None:  # readers tell by that which positions have a loss
                assert (drawn.values > 0).any(1).all(), "a position with a loss has no entry"
            data[name] = PartData(
                windows.row_ids, windows.input_ids, everywhere(drawn.ids), everywhere(drawn.values), statistics
            )
        return data

    def _sample(
        self, teacher: Teacher, row_ids: Tensor, input_ids: Tensor, has_loss: Tensor | None, caches: list[str]
    ) -> SampledRows:
        """All samplings and statistics of one batch of windows [B, S+1], on their way to the CPU.

        With `has_loss` bool [B, S], of those positions alone.
        """
        manifest, samplings = self._corpus.manifest, self._run.samplings
        order = Order(
            {name: Sampling.of(samplings[name].model_dump()) for name in caches},
            tuple(sorted({"label_logprob", *(s for name in caches for s in samplings[name].statistics)})),
            manifest.tokenizer["vocab_size"],
        )
        isolating_id = manifest.tokenizer["end_of_text_id"] if manifest.isolate_documents else None
        places = None if has_loss is None else has_loss.flatten().nonzero()[:, 0]
        rows = teacher.sample(input_ids, position_keys(row_ids, self._corpus.seq_len), order, isolating_id, places)
        to_host = partial(Tensor.to, device="cpu", non_blocking=True)
        return SampledRows(
            {name: Drawn(to_host(drawn.ids.int()), to_host(drawn.values)) for name, drawn in rows.drawn.items()},
            {name: to_host(values) for name, values in rows.statistics.items()},
        )


def teacher_trial(run: CacheRun) -> Callable[[int], None]:
    """What a worker does with a batch, for the search of the largest."""
    return TeacherWorker(run).try_batch


def _everywhere(values: Tensor, *, has_loss: Tensor | None, shape: tuple[int, int]) -> np.ndarray:
    """Values of the rows that were sampled, at their places among all R·S; 0 elsewhere. [R, S] or [R, S, K]."""
    whole = values
    if has_loss is not None:
        whole = values.new_zeros(has_loss.numel(), *values.shape[1:])
        whole[has_loss.flatten()] = values
    return whole.numpy().reshape(*shape, *values.shape[1:])


def _learned(values: np.ndarray, windows: Windows) -> np.ndarray:
    """Those of `values` [R, S] that have a loss."""
    return values if windows.has_loss is None else values[windows.has_loss]


def _load(config: PlannedTeacher, model_dir: str, corpus: PackedCorpus) -> Teacher:
    if config.engine == "vllm":
        from rskd.teacher.vllm_teacher import VllmTeacher  # this process is in vLLM's environment

        return VllmTeacher.load(config, model_dir=model_dir, seq_len=corpus.seq_len)
    device = torch.device("cuda" if config.gpus_per_worker else "cpu")
    isolated = corpus.manifest.isolate_documents
    return TransformersTeacher.load(config, model_dir=model_dir, device=device, isolated=isolated)
