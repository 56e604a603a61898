"""Post-training as the paper's (5.2, E.2, E.3): students ─► SFT ─► scores ─► answers ─► judge ─► Tables 7 and 8.

    python -m flows.post_train TUNING.yaml --students-of BEFORE.yaml [--student NAME]... [--set section.key=value]...

BEFORE is a finished distillation. TUNING says what its students are tuned on and how, and has no students of its own;
flows/configs/tulu.yaml has the paper's settings. Where TUNING has `generate`, the tuned students answer its prompts and
its `judge` rates the answers; without `judge` a rubric does, which is marked wherever it is shown. A stage whose output
exists and matches is skipped, visibly.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from prefect import flow
from prefect.artifacts import create_link_artifact, create_markdown_artifact

from flows.dashboard import address
from flows.distill import distill
from flows.judge import judge
from flows.settings import run_app
from flows.stage import publish, run_stage, show_status
from rskd.cli import ConfigArgument, Outcome, SetOption
from rskd.config import DistillConfig, load_config, to_yaml
from rskd.post_training.tuning import starting, tuned
from rskd.storage import Store


@flow(name="post-train", flow_run_name="post-train-{config.name}")
def post_train(config: DistillConfig, before: DistillConfig, students: list[str] | None = None) -> dict[str, Any]:
    """Tune the students of a finished distillation, score them before and after, and have their answers rated.

    Args:
        config: What they are tuned on, and how; it names no students.
        before: The finished distillation.
        students: Those of its students that are tuned; all by default.
    """
    from rskd.jobs.report import write_report
    from rskd.jobs.start import check_start, measure_start
    from rskd.post_training.report import write_tables

    tuning = tuned(config, before, students)
    start = starting(before, tuning)
    run_stage("check", check_start, tuning, start)
    Store(tuning.home).write("config.yaml", to_yaml(tuning).encode())
    show_status(tuning)
    started = run_stage("start", measure_start, tuning, start)
    publish("start", f"Students of {before.name} before tuning", _models(started))
    found = distill(tuning)
    rated = _rated(tuning)
    if tuning.generate is not None:
        run_stage("report", write_report, tuning)  # which shows the answers, too
    tables = run_stage("tables", write_tables, tuning, start, rated)
    link = address(tables["page"])
    create_link_artifact(key="post-training", link=link, description="Tables 7 and 8")
    create_markdown_artifact(tables["markdown"], key="tables", description=f"Tables 7 and 8 of {tuning.name}")
    skipped = [*_models(found["students"]).values(), *(of for of in rated.values()), started, found["metrics"]]
    return {
        "start": started,
        "metrics": found["metrics"],
        "rated": rated,
        "post_training": tables["page"],
        "skipped": all(one["skipped"] for one in skipped),
    }


def _rated(tuning: DistillConfig) -> Mapping[str, Mapping[str, Any]]:
    """The verdicts on the answers of each model, by the judge, or by the rubric where there is none."""
    if tuning.generate is None:
        return {}
    if tuning.judge is not None:
        return judge(tuning)["models"]
    from rskd.evaluation import rubric
    from rskd.jobs.generate import generate_answers
    from rskd.jobs.rubric import rate_answers, rubric_rows
    from rskd.lineage.answers import models_that_answer

    models = models_that_answer(tuning)
    for model in models:
        run_stage(f"generate {model}", generate_answers, tuning, model)
    found = {model: run_stage(f"rubric {model}", rate_answers, tuning, model) for model in models}
    rows = {f"{model} on {name}": row for model in found for name, row in rubric_rows(found[model]).items()}
    publish("rubric", f"Answers of {tuning.name} ({rubric.NAME})", rows)
    return found


def _models(found: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {name: one for name, one in found.items() if isinstance(one, dict)}


app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(
    config: ConfigArgument,
    students_of: Annotated[
        Path, typer.Option(metavar="BEFORE.yaml", help="The finished distillation whose students are tuned.")
    ],
    student: Annotated[list[str] | None, typer.Option(metavar="NAME", help="One of them; repeatable.")] = None,
    overrides: SetOption = None,
) -> Outcome:
    """Tune the students of a finished distillation by CONFIG.yaml, score and rate them."""
    result = post_train(load_config(config, overrides or ()), load_config(students_of), student)
    rows = {"post-training": result["post_training"], "skipped": result["skipped"]}
    return Outcome(result, "post-training", rows)


if __name__ == "__main__":
    run_app(app)
