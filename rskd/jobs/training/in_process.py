"""Training without Ray: `train.workers=0` runs in the driver's process, as one debugs or runs many small students."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from rskd.full_disk import temporary_folder
from rskd.jobs.training.checkpoints import finished, newest_whole, tidy
from rskd.jobs.training.run import DueCheckpoint, TrainingRun, train_run
from rskd.models.digests import TRAINER_FILE
from rskd.out_of_memory import out_of_memory_explained
from rskd.storage import Store
from rskd.student.trainer import Log


def train_in_process(run: TrainingRun, checkpoints: Store, record: Log, *, name: str) -> Store:
    """Train from the newest whole checkpoint of the run `name`, or from the start; returns the last one.

    Two checkpoints are kept.
    """
    device = torch.device("cuda" if run.train.gpus_per_worker else "cpu")

    def save(step: int, checkpoint: DueCheckpoint) -> None:
        with temporary_folder(checkpoint.write) as folder:
            target = checkpoints.child(f"{name}/checkpoint-{step:08d}")
            target.remove(TRAINER_FILE)
            for file in Store(str(folder)).sizes(recursive=True):
                if file != TRAINER_FILE:
                    target.put(folder / file, file)
            target.write(TRAINER_FILE, (folder / TRAINER_FILE).read_bytes())
        tidy(checkpoints, name)

    with ExitStack() as stack:
        if is_progress_bar_enabled():  # Transformers' own, one for each checkpoint
            disable_progress_bar()
            stack.callback(enable_progress_bar)
        stack.enter_context(out_of_memory_explained(run.remedy))
        restored = stack.enter_context(newest_whole(checkpoints, name, remove_damaged=True))
        train_run(run, restored, device=device, record=record, save=save)
    return finished(checkpoints, name)[-1]
