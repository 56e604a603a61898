"""The paper's Table 3 for a teacher and a student of your own: how near is the gradient of each sampling to full KD's?

    python -m flows.gradient_similarity CONFIG.yaml [--student NAME] [--windows N]

Prints the table, and writes it with a figure into <home>/gradient_similarity. Prefect has no part in it.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from rskd.cli import ConfigArgument, Outcome, SetOption, run_app
from rskd.config import load_config
from rskd.jobs.compare_gradients import (
    COMPARISON_HEAD,
    GRADIENTS_HEAD,
    NUM_GROUPS,
    compare_gradients,
    comparison_rows,
    gradient_rows,
)

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(
    config: ConfigArgument,
    overrides: SetOption = None,
    student: Annotated[str | None, typer.Option(metavar="NAME", help="A trained student; the last by default.")] = None,
    windows: Annotated[int, typer.Option(min=2 * NUM_GROUPS, help="Training windows in the global batch.")] = 64,
) -> Outcome:
    """Compare the gradients of top-k, random and systematic targets with that of full KD."""
    settings = load_config(config, overrides or ())
    found = compare_gradients(settings, student or list(settings.student_specs)[-1], windows=windows)
    _print(found)
    return Outcome(found, "gradient similarity", {"page": found["page"]})


def _print(found: dict[str, Any]) -> None:
    console = Console(stderr=True)
    for title, head, rows in (
        (f"gradients beside full KD, {found['tokens']:,} positions", GRADIENTS_HEAD, gradient_rows(found)),
        ("systematic beside random at equal unique tokens", COMPARISON_HEAD, comparison_rows(found)),
    ):
        printed = Table(*head, title=title, title_justify="left")
        for row in rows:
            printed.add_row(*row)
        console.print(printed)


if __name__ == "__main__":
    run_app(app)
