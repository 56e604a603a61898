"""One training run: restore or build the student, read this rank's batches, train.

Whoever runs it (`train_worker` under Ray Train, `train_in_process`) supplies what becomes of metrics and checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel

from rskd.cache.loader import CacheLoader
from rskd.cache.reader import LogitCache
from rskd.config import PlannedTrain, StudentSpec, TeacherConfig
from rskd.corpus.packed_corpus import PackedCorpus
from rskd.models.tokenizer import load_tokenizer
from rskd.student.architecture import build_student
from rskd.student.checkpoint import CheckpointWriter, Progress, load_progress
from rskd.student.sharding import distribute, replicate, student_of
from rskd.student.shards import load_optimizer, restored_student
from rskd.student.trainer import Log, StudentLoss, TeacherLogits, make_optimizer, train, train_step
from rskd.teacher.transformers_teacher import TransformersTeacher


@dataclass(frozen=True)
class DueCheckpoint:
    """A checkpoint that is to be written into a folder of the caller's, on the ranks that have a part in it."""

    writer: CheckpointWriter
    progress: Progress
    log: list[dict]

    @property
    def is_mine(self) -> bool:
        """Whether this rank writes any of it."""
        return self.writer.writes

    def write(self, directory: Path) -> None:
        """Write it now. Of a run that is not sharded."""
        self.writer.write(directory, self.progress, self.log)

    def begin(self, directory: Path) -> Future[None]:
        """Write it in the background; training may go on at once."""
        return self.writer.begin(directory, self.progress, self.log)


@dataclass(frozen=True)
class TrainingRun:
    """All that a worker has to know; URIs and paths are absolute, since a worker has a working directory of its own."""

    spec: StudentSpec
    train: PlannedTrain  # that of `spec`, with numbers
    teacher: TeacherConfig
    teacher_dir: str
    tokenizer: str
    source_uri: str  # a cache for sparse_kd, else a packed corpus
    vocab_size: int
    seq_len: int
    end_of_text_id: int
    isolate_documents: bool
    hard_threshold: float | None  # log-probability of the label below which a token is hard
    balances_router: bool  # whether the objective has a router's auxiliary loss
    chat_template: str | None = None  # of the conversations that the student learns from

    @property
    def remedy(self) -> str:
        """What to do where memory runs out."""
        return f"lower train.micro_batch (now {self.train.micro_batch})"


def train_run(
    run: TrainingRun,
    restored: Path | None,
    *,
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
    record: Log,
    save: Callable[[int, DueCheckpoint], None],
) -> None:
    """Train from the checkpoint `restored`, or from the start, as one of `world_size` ranks.

    `record(step, metrics)` is called after each step, and `save(step, checkpoint)` when a checkpoint is due.
    """
    config = run.train
    torch.set_num_threads(config.threads_per_worker)
    tokenizer = load_tokenizer(run.tokenizer, trust_remote_code=run.teacher.trust_remote_code)
    if run.chat_template is not None:
        tokenizer.chat_template = run.chat_template
    loss = distribute(partial(_student, run, restored), partial(_student_loss, run, device), config, device)
    student = student_of(loss)
    optimizer = make_optimizer(student, config)
    progress, log = Progress(0, {}), []
    if restored is not None:
        progress, log = load_progress(restored)
        load_optimizer(restored, optimizer)
    writer = CheckpointWriter(student, tokenizer, optimizer, converses=run.chat_template is not None)
    loader = CacheLoader(
        _source(run),  # pyright: ignore[reportArgumentType] (a cached_property is no attribute to it)
        global_batch=config.global_batch,
        rank=rank,
        world_size=world_size,
        seed=config.seed,
        pin_memory=device.type == "cuda",
    )
    if progress.loader:
        loader.load_state_dict(progress.loader)

    def logged(step: int, metrics: dict[str, float]) -> None:
        log.append({"step": step, **metrics})
        record(step, metrics)

    train(
        loss,
        optimizer,
        loader,
        config,
        start_step=progress.step,
        device=device,
        log=logged,
        save=lambda step: save(step, DueCheckpoint(writer, Progress(step, loader.state_dict()), list(log))),
    )


def student_trial(run: TrainingRun) -> Callable[[int], None]:
    """A step on so many windows at once, the first ones, by one worker; for the search of the largest micro-batch."""
    device = torch.device("cuda" if run.train.gpus_per_worker else "cpu")
    loss = replicate(_student_loss(run, device, _student(run, None)), run.train, device)
    optimizer, source = make_optimizer(student_of(loss), run.train), _source(run)

    def step(size: int) -> None:
        config = run.train.model_copy(update={"global_batch": size, "micro_batch": size})
        loader = CacheLoader(source, global_batch=size)  # pyright: ignore[reportArgumentType]
        train_step(loss, optimizer, next(iter(loader)), config, step=0, device=device)

    return step


def _source(run: TrainingRun) -> LogitCache | PackedCorpus:
    """What the student reads."""
    if run.spec.objective.kind == "sparse_kd":
        return LogitCache.open(run.source_uri, allow_misaligned=run.train.allow_misaligned)
    return PackedCorpus.open(run.source_uri)


def _student(run: TrainingRun, restored: Path | None) -> PreTrainedModel:
    """The student of a checkpoint, or a new one, whole and on the CPU.

    It is measured before the loss watches its passes, so a resumed run repeats bit for bit.
    """
    if restored is not None:
        return restored_student(restored, run.spec.student.attention, isolated=run.isolate_documents)
    return build_student(
        run.spec.student,
        teacher_dir=run.teacher_dir,
        vocab_size=run.vocab_size,
        seq_len=run.seq_len,
        end_of_text_id=run.end_of_text_id,
        seed=run.spec.train.seed,
        isolated=run.isolate_documents,
    )


def _student_loss(run: TrainingRun, device: torch.device, student: PreTrainedModel) -> StudentLoss:
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
    teacher = TransformersTeacher.load(
        run.teacher, model_dir=run.teacher_dir, device=device, isolated=run.isolate_documents
    )
    return partial(teacher.logits, vocab_size=run.vocab_size, end_of_text_id=isolated)
