"""The paper's tables of language models, made here: every cache from one teacher pass, a student for every cell.

    python -m flows.reproduce_paper --scale cpu-small --text FOLDER [--table table1]... [--hours H]

It can be stopped at any time and goes on where it was; each call writes the report of the cells that are done. At the
scale cpu-small the teacher is trained here: give it some 25 MB of text.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from prefect import flow
from prefect.artifacts import create_link_artifact

from flows.cache_logits import cache_logits
from flows.stage import run_stage
from rskd.cli import Outcome, run_app
from rskd.config import SourceConfig
from rskd.errors import ConfigError
from rskd.reproduction.scales import SCALES, Scale
from rskd.reproduction.tables import TABLES, Table, cells

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@flow(name="reproduce-paper", flow_run_name="reproduce-paper-{scale}")
def reproduce_paper(
    scale: str,
    source: SourceConfig,
    home: str,
    tables: list[str] | None = None,
    processes: int = 1,
    hours: float = 24.0,
) -> dict[str, Any]:
    """Prepare the scale, cache every sampling, train and evaluate the cells of `tables`, write the report.

    No cell is begun after `hours`; the same call goes on later. `processes` cells run at once.
    """
    from rskd.reproduction.cells import read_cells, run_cells
    from rskd.reproduction.measurements import measure
    from rskd.reproduction.report import write_report
    from rskd.reproduction.setting import prepare, with_students

    size = _scale(scale)
    usual, chosen = _tables(size.tables), _tables(tables or size.tables)
    wanted = cells(chosen, size.more_seeds)
    methods = {row.method for table in (*usual, *chosen) for row in table.rows}  # whose caches one teacher pass makes
    config = run_stage("prepare", prepare, size, source, Path(home), methods)
    cache_logits(config)
    config = run_stage("students", with_students, config, size, wanted)
    state = run_stage("cells", run_cells, config, wanted, processes, hours)
    run_stage("gradients and unique tokens", measure, config, size.gradient_windows)
    report = run_stage("report", write_report, config, chosen, read_cells(config, wanted), scale)
    create_link_artifact(key="reproduction", link=Path(report).absolute().as_uri())
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


@app.command()
def main(
    scale: Annotated[str, typer.Option(help=f"Size of models and data: {', '.join(SCALES)}.")],
    text: Annotated[
        str | None, typer.Option(help="Folder, file or glob of documents; CPython's documentation by default.")
    ] = None,
    kind: Annotated[
        Literal["text", "jsonl", "parquet", "hf"], typer.Option(help="Kind of the documents, as in corpus.source.")
    ] = "text",
    home: Annotated[str | None, typer.Option(help="Where everything goes; .rskd/paper-SCALE by default.")] = None,
    table: Annotated[
        list[str] | None, typer.Option(help="A table to make; those of the scale by default. Repeatable.")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Students that are trained at once.")] = 1,
    hours: Annotated[float, typer.Option(min=0, help="No student is begun later than that.")] = 24.0,
) -> Outcome:
    """Make the paper's tables at a scale; run it again to go on."""
    source = SourceConfig(kind="python_docs") if text is None else SourceConfig(kind=kind, uri=text)
    result = reproduce_paper(scale, source, home or f".rskd/paper-{scale}", table, processes, hours)
    return Outcome(result, "reproduction", result)


if __name__ == "__main__":
    run_app(app)
