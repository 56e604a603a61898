"""A stage at work: its run in MLflow, its live metrics, and its costs, kept beside the outputs so that attempts add up.

    at_work ─► tracking, metrics ─► … work … ─┬─► cost/… of this attempt, on its run
                                              ├─► <home>/costs/<stage>.json, costs/<stage>/<student>.json: all attempts
                                              └─► seconds, core_seconds, gpu_seconds, money of all stages, on the parent

An attempt counts as far as its process lives to write: a failure and ctrl-C do, SIGKILL does not. The sum goes on while
anything that an earlier attempt made still stands; made from scratch with other settings, it begins anew. Each stage of
each student has a file of its own, which its lock protects (`one_at_a_time`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from rskd import interrupts, records, tracking
from rskd.config import DistillConfig
from rskd.costs import COSTS, FOLDER, Costs, Reserved, costs_in, recorded_costs, total
from rskd.errors import first_line
from rskd.jobs.metrics import Live, exported
from rskd.storage import Store

_logger = logging.getLogger(__name__)


class AtWork:
    """What a stage at work writes to: its run, its live metrics, and what its costs are stated for."""

    def __init__(self, run: tracking.Run, live: Live):
        self.run = run
        self.live = live
        self.tokens = self.bytes_written = 0

    def add(self, *, tokens: int = 0, bytes_written: int = 0) -> None:
        """Count what was done since the last call."""
        self.tokens += tokens
        self.bytes_written += bytes_written
        self.live.add("rskd_tokens_total", tokens)
        self.live.add("rskd_written_bytes_total", bytes_written)


@contextmanager
def at_work(
    config: DistillConfig,
    stage: str,
    student: str | None = None,
    *,
    reserves: Reserved,
    makes: Mapping[str, str],
    planned: Mapping[str, Any] | None = None,
) -> Iterator[AtWork]:
    """`tracking.stage`, whose live metrics are exported, and whose costs are recorded however it ends.

    `makes` has a digest of the settings of each output, by any name; `planned` are `rskd.plan.Plan.params`. Raises
    what `tracking.stage` does, and CorruptPartError if the costs of before are not what was written.
    """
    file = _file(stage, student)
    _attempts_before(config, file, makes)  # a damaged file is reported before the work
    root = Store(config.storage.root)
    with (
        tracking.stage(config, stage, student, planned) as run,
        exported(config.name, stage, student, disk=root.path if root.is_local else None) as live,
    ):
        work, started, finished = AtWork(run, live), time.monotonic(), False
        try:
            yield work
            finished = True
        finally:
            with interrupts.deferred():
                seconds = time.monotonic() - started
                own = reserves.costs(seconds, tokens=work.tokens, bytes_written=work.bytes_written)
                try:
                    _record(config, file, makes, own, run)
                except Exception as error:  # the stage is done, or its own error is the one to report
                    level = logging.WARNING if finished else logging.DEBUG
                    _logger.log(level, "costs of %s are not fully recorded (%s)", file, first_line(error))


def costs_of(config: DistillConfig, stage: str, student: str | None = None) -> dict[str, Any] | None:
    """Costs of all attempts at a stage, priced, by name; None where none was recorded."""
    found = records.read(_folder(config), _file(stage, student))
    return None if found is None else asdict(costs_in(found).priced(config.costs))


def _record(config: DistillConfig, file: str, makes: Mapping[str, str], own: Costs, run: tracking.Run) -> None:
    before, attempts = _attempts_before(config, file, makes)
    content = asdict(before + own)
    del content["money"]  # prices change
    records.write(_folder(config), file, content | {"makes": dict(makes), "attempts": attempts + 1})
    run.metrics({f"cost/{name}": value for name, value in _known(own.priced(config.costs)).items()})
    if run.parent is not None:
        whole = _known(total(recorded_costs(Store(config.home)).values(), config.costs))
        run.parent.metrics({name: whole[name] for name in COSTS if name in whole})


def _attempts_before(config: DistillConfig, file: str, makes: Mapping[str, str]) -> tuple[Costs, int]:
    """Costs and number of the attempts that this one goes on from."""
    found = records.read(_folder(config), file)
    if found is None or not found["makes"].items() & makes.items():
        return Costs(), 0
    return costs_in(found), found["attempts"]


def _known(costs: Costs) -> dict[str, float]:
    return {name: value for name, value in asdict(costs).items() if value is not None}


def _folder(config: DistillConfig) -> Store:
    return Store(config.home).child(FOLDER)


def _file(stage: str, student: str | None) -> str:
    return f"{stage}.json" if student is None else f"{stage}/{student}.json"
