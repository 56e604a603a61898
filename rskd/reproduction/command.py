"""The options of a reproduction on the command line, with and without Prefect."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import typer

from rskd.cli import Outcome
from rskd.config import SourceConfig
from rskd.reproduction.scales import SCALES


def as_app(reproduce: Callable[..., dict[str, Any]]) -> typer.Typer:
    """A command line for `rskd.reproduction.run.reproduce`, or a flow of it."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None)

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
        result = reproduce(scale, source, home or f".rskd/paper-{scale}", table, processes, hours)
        return Outcome(result, "reproduction", result)

    return app
