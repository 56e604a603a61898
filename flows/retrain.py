"""Retrain: pack and cache what is new ─► train a challenger ─► judge it beside the champion ─► move the alias, or not.

    python -m flows.retrain CONFIG.yaml [--student NAME]

On a schedule, by hand, or when files arrive (`flows.watch_source`). A run that finds nothing new is done in seconds and
says so. Overlapping runs of one configuration take turns, stage by stage.
"""

from __future__ import annotations

from typing import Any

import typer
from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact

from flows.cache_logits import cache_logits
from flows.dashboard import show_dashboard
from flows.pack_corpus import pack_corpus
from flows.settings import run_app
from flows.stage import run_stage, show_status
from flows.train_student import train_student
from rskd.cli import ConfigArgument, Outcome, SetOption, StudentOption
from rskd.config import DistillConfig, load_config
from rskd.errors import ConfigError
from rskd.markdown import markdown_table


@flow(name="retrain", flow_run_name="retrain-{config.name}")
def retrain(config: DistillConfig, student: str | None = None) -> dict[str, Any]:
    """Train a challenger on what the source holds now, and make it the champion if the gate lets it pass.

    `student`: the one that is trained; it may be left out where the configuration has one alone. Returns the verdict
    (`rskd.jobs.promote`), with `skipped` where nothing was new.
    """
    from rskd.jobs.promote import promote_student

    name = student or _only_student(config)
    config.student_spec(name)  # before the teacher runs for it
    show_status(config)
    done = [pack_corpus(config), *cache_logits(config).values(), train_student(config, name)]
    found = run_stage(f"promote {name}", promote_student, config, name)
    nothing_new = found["skipped"] and all(stage["skipped"] for stage in done)
    said = "nothing new" if nothing_new else f"{found['verdict']}: {found['reason']}"
    get_run_logger().info(
        "%s version %s of %s, champion is %s", said, found["version"], found["model"], found["champion"]
    )
    create_markdown_artifact(_page(config, name, said, found), key="verdict", description=said)
    if not found["skipped"]:
        show_dashboard(config)
    return found | {"skipped": nothing_new}


def _only_student(config: DistillConfig) -> str:
    names = list(config.student_specs)
    if len(names) > 1:
        raise ConfigError(f"which of the students {', '.join(names)} is the challenger? give student")
    return names[0]


def _page(config: DistillConfig, student: str, said: str, found: dict[str, Any]) -> str:
    """The verdict in Markdown, with a row for each metric."""
    head = ["metric", "champion", "challenger", "difference", "interval", "margin", "verdict"]
    rows = [
        [
            row["metric"],
            *(_number(row[key]) for key in ("champion", "challenger", "difference")),
            "" if row["low"] is None else f"{row['low']:+.4g} to {row['high']:+.4g}",
            _number(row["margin"]),
            row["verdict"],
        ]
        for row in found["ledger"]
    ]
    return f"""# {said}

Student `{student}` of `{config.name}` is version {found["version"]} of `{found["model"]}`, judged against version
{found["against"] or "none"}; the champion is version {found["champion"] or "none"}.

{markdown_table(head, rows)}
"""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(
    config: ConfigArgument,
    overrides: SetOption = None,
    student: StudentOption = None,
) -> Outcome:
    """Retrain a configuration's student."""
    found = retrain(load_config(config, overrides or ()), student)
    rows = {key: found[key] for key in ("verdict", "reason", "model", "version", "against", "champion", "skipped")}
    return Outcome(found, "retraining", rows)


if __name__ == "__main__":
    run_app(app)
