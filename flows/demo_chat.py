"""The demo on conversations: the student of `make demo` tuned by labels and by sampled KD, on the assistant's tokens.

    make demo-chat     # after make demo

CPython's documentation ─► conversations ─► cache ─► ce, kd ─► loss-token metrics, answers to held-out prompts ─► report
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import typer
from prefect import flow

from flows.demo import CONFIGS, cache_figures, metrics_of, print_metrics, write_summary
from flows.distill import distill
from flows.settings import run_app
from flows.stage import publish, run_stage, show_status
from rskd.cli import Outcome
from rskd.config import DistillConfig, load_config
from rskd.errors import ConfigError, MissingOutputError

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main() -> Outcome:
    """Run the demo on conversations and show its table of students."""
    return demo_chat(load_config(CONFIGS / "demo-chat.yaml"))


def demo_chat(config: DistillConfig) -> Outcome:
    """Tune, let all models answer, print the table, and write summary.json beside the report.

    Raises ConfigError where the student of `make demo` is missing.
    """
    from rskd.corpus.python_conversations import write_conversations
    from rskd.student.checkpoint import finished_student

    start = str(config.student.model)
    try:
        finished_student(start, "rskd")
    except MissingOutputError:
        raise ConfigError(f"student.model={start} does not exist, or is unfinished: run make demo first") from None
    started = time.monotonic()
    conversations = Path(str(config.corpus.source.uri))
    if not conversations.exists():  # written last
        write_conversations(conversations.parent)
    result = tune(config)

    models = metrics_of(config, result["metrics"])
    found = models | {"cache": cache_figures(result["caches"]["default"])}
    skipped = result["metrics"]["skipped"] and all(answers["skipped"] for answers in result["answers"].values())
    summary = write_summary(config, found, started, skipped=skipped)
    print_metrics("what the assistant says in held-out conversations about Python", models)
    shown = {
        "report": result["report"],
        "students": f"{config.home}/students",
        "conversations": str(conversations.parent),
    }
    return Outcome(summary, "demo-chat", {"seconds": summary["seconds"]} | shown)


@flow(name="demo-chat", flow_run_name="{config.name}")
def tune(config: DistillConfig) -> dict[str, Any]:
    """Distil, generate the answers of students and teacher, and write the report with them."""
    from rskd.jobs.generate import generate_answers
    from rskd.jobs.report import write_report
    from rskd.lineage.answers import models_that_answer

    show_status(config)
    result = distill(config)
    answers = {
        model: run_stage(f"generate {model}", generate_answers, config, model) for model in models_that_answer(config)
    }
    rows = {
        f"{model} on {name}": of_set | {"skipped": found["skipped"]}
        for model, found in answers.items()
        for name, of_set in found.items()
        if name != "skipped"
    }
    publish("answers", f"Answers of the models of {config.name}", rows)
    return result | {"answers": answers, "report": run_stage("report", write_report, config)}


if __name__ == "__main__":
    run_app(app)
