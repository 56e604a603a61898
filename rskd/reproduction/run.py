"""The whole reproduction at a scale.

text ─► prepare ─► caches, one teacher pass ─► students, a cell each ─► gradients, unique tokens ─► report
                                               └─► config.yaml, which names the students
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rskd.config import SourceConfig
from rskd.errors import ConfigError
from rskd.reproduction.methods import MISALIGNED
from rskd.reproduction.scales import SCALES, Scale
from rskd.reproduction.tables import TABLES, Table, cells


def _run_here(name: str, stage: Callable[..., Any], *args: Any) -> Any:
    return stage(*args)


def reproduce(
    scale: str,
    source: SourceConfig,
    home: str,
    tables: Sequence[str] | None = None,
    processes: int = 1,
    hours: float = 24.0,
    *,
    run_stage: Callable[..., Any] = _run_here,
) -> dict[str, Any]:
    """Prepare the scale, cache every sampling, train and evaluate the cells of `tables`, write the report.

    No cell is begun after `hours`; the same call goes on later. `processes` cells run at once. Stages run by
    `run_stage(name, stage, *args)`. Returns how many cells are `done` and `left`, and the URI of the `report`.

    Raises ConfigError for a scale or table that does not exist, and what the stages raise.
    """
    from rskd.jobs.cache import cache_logits
    from rskd.reproduction.cells import read_cells, run_cells
    from rskd.reproduction.measurements import measure
    from rskd.reproduction.other_contexts import cache_other_contexts
    from rskd.reproduction.report import write_report
    from rskd.reproduction.setting import prepare, with_students, write_config

    size = _scale(scale)
    chosen = _tables(tables or size.tables)
    wanted = cells(chosen, size.more_seeds)
    methods = {row.method for table in chosen for row in table.rows}  # whose caches one teacher pass makes
    config = run_stage("prepare", prepare, size, source, Path(home), methods)
    run_stage("cache", cache_logits, config)
    if any(method == MISALIGNED for method, _ in wanted):
        run_stage("cache other contexts", cache_other_contexts, config)
    config = run_stage("students", with_students, config, size, wanted)
    run_stage("config", write_config, config)
    state = run_stage("cells", run_cells, config, wanted, processes, hours)
    run_stage("gradients and unique tokens", measure, config, size.gradient_windows)
    report = run_stage("report", write_report, config, chosen, read_cells(config, wanted), scale)
    return {**state, "report": report}


def _scale(name: str) -> Scale:
    if name not in SCALES:
        raise ConfigError(f"scale {name} is not one of {', '.join(SCALES)}: name one of them")
    return SCALES[name]


def _tables(names: Sequence[str]) -> list[Table]:
    unknown = [name for name in names if name not in TABLES]
    if unknown:
        raise ConfigError(f"table {unknown[0]} is not one of {', '.join(TABLES)}: name one of them")
    return [TABLES[name] for name in names]
