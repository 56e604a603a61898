"""Training without Ray: `train.workers=0` runs in the driver's process, as one debugs or runs many small students.

Checkpoints are folders `checkpoint-<step>` whose trainer.json is written last: without it a folder does not count.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from rskd.jobs.training.run import TrainingRun, WriteCheckpoint, train_run
from rskd.storage import Store
from rskd.student.checkpoint import TRAINER_FILE
from rskd.student.trainer import Log

_KEPT = 2


def train_in_process(run: TrainingRun, checkpoints: Store, record: Log) -> Store:
    """Train from the newest checkpoint in `checkpoints`, or from the start; returns the last one."""
    device = torch.device("cuda" if run.spec.train.gpus_per_worker else "cpu")

    def save(step: int, write: WriteCheckpoint) -> None:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder))
            target = checkpoints.child(_name(step))
            target.fs.makedirs(target.path, exist_ok=True)
            for file in Path(folder).iterdir():
                if file.name != TRAINER_FILE:
                    with target.explained(file.name, writing=True):
                        target.fs.put_file(str(file), target.full_path(file.name))
            target.write(TRAINER_FILE, Path(folder, TRAINER_FILE).read_bytes())
        for old in _steps(checkpoints)[:-_KEPT]:
            _remove(checkpoints.child(_name(old)))

    with ExitStack() as stack:
        if is_progress_bar_enabled():  # Transformers' own, one for each checkpoint
            disable_progress_bar()
            stack.callback(enable_progress_bar)
        done = _steps(checkpoints)
        restored = Path(stack.enter_context(checkpoints.child(_name(done[-1])).local_copy())) if done else None
        train_run(run, restored, device=device, record=record, save=save)
    return checkpoints.child(_name(run.spec.train.steps))


def _name(step: int) -> str:
    return f"checkpoint-{step:08d}"


def _steps(checkpoints: Store) -> list[int]:
    """Steps of the complete checkpoints, rising."""
    names = checkpoints.sizes(recursive=True)
    return sorted(int(name.split("/")[0].rpartition("-")[2]) for name in names if name.endswith(f"/{TRAINER_FILE}"))


def _remove(checkpoint: Store) -> None:
    checkpoint.remove(TRAINER_FILE)
    for name in checkpoint.list():
        checkpoint.remove(name)
