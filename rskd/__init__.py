"""rskd: distil large language models from cached, sampled teacher logits.

    text ─► packed windows ─► teacher: sampled targets ─► logit cache (Parquet) ─► loader ─► fused loss / DDP ─► student
            corpus/           teacher/                    cache/                              student/
                                                                       evaluation/ ─► tracking (MLflow), report ◄─┘

`rskd.jobs` runs the stages on Ray, `flows` schedules them with Prefect, `rskd.cli` is the command line.

Names below are imported on first use, so that the numerics need torch alone (no ray, prefect, mlflow, pyarrow).
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rskd.cache.loader import CacheLoader as CacheLoader
    from rskd.cache.reader import LogitCache as LogitCache
    from rskd.sparse_targets import SparseTargets as SparseTargets
    from rskd.student.objective import sparse_kd_loss as sparse_kd_loss
    from rskd.teacher.hidden_to_targets import sample_from_hidden as sample_from_hidden
    from rskd.teacher.sampling import sample_targets as sample_targets

_HOMES = {
    "CacheLoader": "rskd.cache.loader",
    "LogitCache": "rskd.cache.reader",
    "SparseTargets": "rskd.sparse_targets",
    "sample_from_hidden": "rskd.teacher.hidden_to_targets",
    "sample_targets": "rskd.teacher.sampling",
    "sparse_kd_loss": "rskd.student.objective",
}

__all__ = list(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'rskd' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
