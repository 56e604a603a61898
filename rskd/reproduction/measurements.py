"""What the paper measures beside its students: gradients (Table 3), unique tokens of sampling rounds (Figure 5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rskd import records
from rskd.config import DistillConfig
from rskd.estimate import PROBE, probe
from rskd.jobs.compare_gradients import RECORDS_FOLDER, compare_gradients
from rskd.jobs.train import train_student
from rskd.reproduction.cells import Cell, cell_name, read_cells
from rskd.reproduction.methods import OURS
from rskd.storage import Store

_PROBE_WINDOWS = 64
_STUDENT: Cell = (OURS, 0)


@dataclass(frozen=True)
class Measurements:
    """Records of `compare_gradients` and of `probe`; None for what was not measured yet."""

    gradients: Mapping[str, Any] | None
    unique_tokens: Mapping[str, Any] | None


def measure(config: DistillConfig, gradient_windows: int) -> None:
    """Measure what is not there yet; gradients when the student that they are of is asked for, and done."""
    found = read_measurements(config)
    if found.unique_tokens is None:
        probe(config, windows=_PROBE_WINDOWS)
    name = cell_name(_STUDENT)
    if found.gradients is None and name in config.student_specs and read_cells(config, [_STUDENT]):
        train_student(config, name)  # a record that was carried here came without its weights
        compare_gradients(config, name, windows=gradient_windows)


def read_measurements(config: DistillConfig) -> Measurements:
    """What was measured in the folder of `config`."""
    home = Store(config.home)
    return Measurements(
        records.read(home.child(RECORDS_FOLDER), f"{cell_name(_STUDENT)}.json"), records.read(home, f"{PROBE}.json")
    )
