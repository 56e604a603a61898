"""What each worker of Ray Train runs.

Rank 0 alone writes: checkpoints through Ray Train, which uploads them while training goes on, and the metrics of every
step into a queue that the driver reads.
"""

from __future__ import annotations

import ray.train
from ray.train import Checkpoint, CheckpointUploadMode
from ray.train.torch import get_device
from ray.util.queue import Queue

from rskd import tracking
from rskd.full_disk import filled_folder
from rskd.jobs.training.checkpoints import newest_whole
from rskd.jobs.training.end_with_raylet import end_with_raylet
from rskd.jobs.training.run import TrainingRun, WriteCheckpoint, train_run
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
    is_first = context.get_world_rank() == 0

    def record(step: int, metrics: dict[str, float]) -> None:
        if is_first:
            updates.put({"step": step, **metrics})

    def save(step: int, write: WriteCheckpoint) -> None:
        ray.train.report(
            {"step": step},
            checkpoint=Checkpoint(str(filled_folder(write))) if is_first else None,
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
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
