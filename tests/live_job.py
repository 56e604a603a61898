"""A job whose live metrics a test looks at: python live_job.py SETTINGS.json STACK_FOLDER; it ends with its stdin.

Packs, caches and trains on the stack's Ray; a worker of the training is killed, and a second student diverges.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import psutil
from stacks import command_of
from tiny_runs import STAGES

from infra.stack.leftovers import left_of
from rskd.config import validate_config
from rskd.jobs.train import train_student
from rskd.progress import Standing, watched_by
from rskd.student.trainer import NonFiniteError


def main() -> None:
    config = validate_config(json.loads(Path(sys.argv[1]).read_text()))
    STAGES["pack"](config)
    STAGES["cache"](config)
    killed: list[psutil.Process] = []

    def kill_worker_once(standing: Standing) -> None:
        if not killed:
            killed.extend(p for p in left_of(sys.argv[2], "ray") if command_of(p).startswith("ray::RayTrainWorker"))
            for process in killed:
                process.kill()

    with watched_by(kill_worker_once):
        train_student(config, "good")
    assert len(killed) == 1
    try:
        train_student(config, "diverging")
    except NonFiniteError:
        sys.stdin.read()


if __name__ == "__main__":
    main()
