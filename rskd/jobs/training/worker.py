"""What each worker of Ray Train runs.

Rank 0 puts the metrics of every step into a queue that the driver reads. It writes the checkpoints, and of a sharded
run every rank its part of them: in the background, from a copy of the state, and Ray Train uploads what is written.
"""

from __future__ import annotations

import shutil
import tempfile
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

import ray.train
from ray.train import Checkpoint, CheckpointUploadMode
from ray.train.torch import get_device
from ray.util.queue import Queue

from rskd import tracking
from rskd.full_disk import temporary_space_explained
from rskd.jobs.training.checkpoints import newest_whole
from rskd.jobs.training.end_with_raylet import end_with_raylet
from rskd.jobs.training.run import DueCheckpoint, TrainingRun, train_run
from rskd.out_of_memory import out_of_memory_explained
from rskd.storage import Store


def train_worker(
    run: TrainingRun, updates: Queue, checkpoints_uri: str, name: str, tracked: tracking.Run | None
) -> None:
    """Train from the newest whole checkpoint of the run `name`, or from the start.

    Puts a record for each step into `updates`. Each worker looks for the checkpoint itself, while none writes: they
    find the same.
    """
    end_with_raylet()
    Store(run.source_uri).expect()
    context = ray.train.get_context()
    is_first, storage = context.get_world_rank() == 0, cast(Any, context.get_storage())

    def record(step: int, metrics: dict[str, float]) -> None:
        if is_first:
            updates.put({"step": step, **metrics})

    def save(step: int, checkpoint: DueCheckpoint) -> None:
        folder = Path(tempfile.mkdtemp()) if checkpoint.is_mine else None
        written = folder and checkpoint.begin(folder)

        def upload(local: Checkpoint, name: str) -> Checkpoint:
            assert written is not None
            _wait_for(written, Path(local.path))
            return storage.persist_current_checkpoint(local, name)

        ray.train.report(
            {"step": step},
            checkpoint=folder and Checkpoint(str(folder)),
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=upload,
            delete_local_checkpoint_after_upload=True,
        )

    with (
        tracking.monitored(tracked),
        out_of_memory_explained(run.remedy),
        newest_whole(Store(checkpoints_uri), name) as directory,
    ):
        train_run(
            run,
            directory,
            device=get_device(),
            rank=context.get_world_rank(),
            world_size=context.get_world_size(),
            record=record,
            save=save,
        )


def _wait_for(written: Future[None], folder: Path) -> None:
    """Until a checkpoint is in its folder, which goes where that fails. OutputError if no temporary space is left."""
    try:
        with temporary_space_explained():
            written.result()
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
