"""The paper's tables of language models, made here: every cache from one teacher pass, a student for every cell.

    python -m flows.reproduce_paper --scale cpu-small --text FOLDER [--table table1]... [--hours H]

It can be stopped at any time and goes on where it was; each call writes the report of the cells that are done. At the
scale cpu-small the teacher is trained here: give it some 25 MB of text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_link_artifact

from flows.settings import run_app
from flows.stage import run_stage
from rskd.config import SourceConfig
from rskd.reproduction.command import as_app
from rskd.reproduction.run import reproduce


@flow(name="reproduce-paper", flow_run_name="reproduce-paper-{scale}")
def reproduce_paper(
    scale: str,
    source: SourceConfig,
    home: str,
    tables: list[str] | None = None,
    processes: int = 1,
    hours: float = 24.0,
) -> dict[str, Any]:
    """`rskd.reproduction.run.reproduce`, each stage a task.

    Args:
        scale: Size of models and data: cpu-small, gpu-1, paper, paper-100b, paper-8b or tiny.
        source: The documents; CPython's own are short for cpu-small.
        home: Folder where everything goes, and where a run that was stopped goes on.
        tables: Tables to make, such as table5; those of the scale by default.
        processes: Students that are trained at once.
        hours: No student is begun later than that.
    """
    result = reproduce(scale, source, home, tables, processes, hours, run_stage=run_stage)
    create_link_artifact(key="reproduction", link=Path(result["report"]).absolute().as_uri())
    return result


if __name__ == "__main__":
    run_app(as_app(reproduce_paper))
