"""What each worker of Ray Train runs: restore or build the student, read this rank's batches, train, report.

Rank 0 alone writes: checkpoints through Ray Train, which uploads them while training goes on, and the metrics of every
step into a queue that the driver reads.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import ray.train
import torch
from ray.train import Checkpoint, CheckpointUploadMode
from ray.train.torch import get_device
from ray.util.queue import Queue

from rskd.cache.loader import CacheLoader
from rskd.cache.reader import LogitCache
from rskd.config import StudentSpec, TeacherConfig
from rskd.corpus.packed_corpus import PackedCorpus
from rskd.corpus.tokenizer import load_tokenizer
from rskd.storage import Store
from rskd.student.checkpoint import Progress, load_optimizer, load_progress, save_checkpoint
from rskd.student.model import build_student, load_model
from rskd.student.trainer import StudentLoss, TeacherLogits, distribute, make_optimizer, train
from rskd.teacher.transformers_teacher import TransformersTeacher


@dataclass(frozen=True)
class TrainingRun:
    """All that a worker has to know; URIs and paths are absolute, since a worker has a working directory of its own."""

    spec: StudentSpec
    teacher: TeacherConfig
    teacher_dir: str
    tokenizer: str
    source_uri: str  # a cache for sparse_kd, else a packed corpus
    vocab_size: int
    seq_len: int
    end_of_text_id: int
    isolate_documents: bool
    hard_threshold: float | None  # log-probability of the label below which a token is hard


def train_worker(run: TrainingRun, updates: Queue) -> None:
    """Train from the newest checkpoint of this run, or from the start; puts a record for each step into `updates`."""
    Store(run.source_uri).expect()
    config = run.spec.train
    torch.set_num_threads(config.threads_per_worker)
    device = get_device()
    context = ray.train.get_context()
    is_first = context.get_world_rank() == 0
    tokenizer = load_tokenizer(run.tokenizer)
    with _restored_checkpoint() as directory:
        student = _build_student(run) if directory is None else load_model(str(directory), run.spec.student.attention)
        loss = distribute(_student_loss(student, run, device), device)
        optimizer = make_optimizer(student, config)
        progress, log = Progress(0, {}), []
        if directory is not None:
            load_optimizer(directory, optimizer)
            progress, log = load_progress(directory)
    open_source = LogitCache.open if run.spec.objective.kind == "sparse_kd" else PackedCorpus.open
    loader = CacheLoader(
        open_source(run.source_uri),  # pyright: ignore[reportArgumentType] (a cached_property is no attribute to it)
        global_batch=config.global_batch,
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        seed=config.seed,
        pin_memory=device.type == "cuda",
    )
    if progress.loader:
        loader.load_state_dict(progress.loader)

    def record(step: int, metrics: dict[str, float]) -> None:
        if is_first:
            log.append({"step": step, **metrics})
            updates.put(log[-1])

    def save(step: int) -> None:
        checkpoint = None
        if is_first:
            folder = tempfile.mkdtemp()
            try:
                save_checkpoint(Path(folder), student, tokenizer, optimizer, Progress(step, loader.state_dict()), log)
            except BaseException:
                shutil.rmtree(folder)  # a full disk is not to get fuller with each restart
                raise
            checkpoint = Checkpoint(folder)
        ray.train.report(
            {"step": step},
            checkpoint=checkpoint,
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            delete_local_checkpoint_after_upload=True,
        )

    train(loss, optimizer, loader, config, start_step=progress.step, device=device, log=record, save=save)


@contextmanager
def _restored_checkpoint() -> Iterator[Path | None]:
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        yield None
    else:
        with checkpoint.as_directory() as directory:
            yield Path(directory)


def _build_student(run: TrainingRun):
    return build_student(
        run.spec.student,
        teacher_dir=run.teacher_dir,
        vocab_size=run.vocab_size,
        seq_len=run.seq_len,
        end_of_text_id=run.end_of_text_id,
        seed=run.spec.train.seed,
    )


def _student_loss(student, run: TrainingRun, device: torch.device) -> StudentLoss:
    isolated = run.end_of_text_id if run.isolate_documents else None
    return StudentLoss(
        student,
        run.spec.objective,
        vocab_size=run.vocab_size,
        end_of_text_id=isolated,
        hard_threshold=run.hard_threshold,
        teacher_logits=_online_teacher(run, isolated, device) if run.spec.objective.kind == "full_kd" else None,
    )


def _online_teacher(run: TrainingRun, isolated: int | None, device: torch.device) -> TeacherLogits:
    teacher = TransformersTeacher.load(run.teacher, model_dir=run.teacher_dir, device=device)
    return partial(teacher.logits, vocab_size=run.vocab_size, end_of_text_id=isolated)
