"""Adapt a teacher to the corpus before it is cached (paper 6.2, Table 11).

    python -m flows.adapt_teacher CONFIG.yaml [--steps N] [--lr LR] [--compare]

    teacher ─► pack ─► train, cross-entropy, from the teacher's weights ─► <name>/students/adapted_teacher
                                                                           └─► teacher.model of the next configuration

The teacher may have been trained on other data than the student will see. A short while of training on the corpus
fixes that. The result is a Hugging Face directory that either engine loads. `--compare` distils the configuration
twice, from the teacher as it was and from the adapted one, and shows the students of both.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from prefect import flow

from flows.demo import METRICS, print_metrics
from flows.distill import distill
from flows.pack_corpus import pack_corpus
from flows.settings import run_app
from flows.stage import show_status
from flows.train_student import train_student
from rskd.cli import ConfigArgument, Outcome, SetOption
from rskd.config import DistillConfig, load_config, validate_config
from rskd.models.files import resolve_teacher
from rskd.storage import Store

ADAPTED = "adapted_teacher"
COMPARED = "adapted"  # the distillation from it is <name>-adapted


@flow(name="adapt-teacher", flow_run_name="adapt-teacher-{config.name}")
def adapt_teacher(config: DistillConfig, steps: int = 200, lr: float = 2e-5) -> dict[str, Any]:
    """Train the teacher of `config` on its corpus, `steps` steps by cross-entropy at a peak learning rate of `lr`.

    Everything else is as in `config.train`. Returns the summary of the training; `uri` is the adapted teacher's.
    """
    show_status(config)
    pack_corpus(config)
    return train_student(adaptation(config, steps=steps, lr=lr), ADAPTED)


def adaptation(config: DistillConfig, *, steps: int, lr: float) -> DistillConfig:
    """`config` with its teacher as the only student, from the teacher's own weights."""
    directory = resolve_teacher(config)
    train = config.train.model_dump(mode="json") | {"steps": steps, "lr": lr, "min_lr": lr / 10}
    spec = {
        "student": {"model": directory, "init": "checkpoint", "attention": config.teacher.attention},
        "objective": {"kind": "ce"},
        "train": train,
    }
    return _changed(config, student={}, objective={}, students={ADAPTED: spec})  # which it would inherit


def with_adapted_teacher(config: DistillConfig, uri: str) -> DistillConfig:
    """`config` under another name, with the adapted teacher at `uri`."""
    teacher = config.teacher.model_dump(mode="json") | {"model": Store(uri).absolute_uri, "revision": None}
    return _changed(config, name=f"{config.name}-{COMPARED}", teacher=teacher)


def _changed(config: DistillConfig, **sections: Any) -> DistillConfig:
    return validate_config(config.model_dump(mode="json", exclude_unset=True) | sections, origin=config.name)


app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(
    config: ConfigArgument,
    overrides: SetOption = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps of the adaptation.")] = 200,
    lr: Annotated[float, typer.Option(help="Its peak learning rate.")] = 2e-5,
    compare: Annotated[bool, typer.Option(help="Distil from both teachers and show their students.")] = False,
) -> Outcome:
    """Adapt the teacher of a configuration to its corpus."""
    settings = load_config(config, overrides or ())
    adapted = adapt_teacher(settings, steps=steps, lr=lr)
    result = {ADAPTED: adapted}
    if compare:
        both = {"as it was": settings, COMPARED: with_adapted_teacher(settings, adapted["uri"])}
        metrics = {which: distill(of)["metrics"] for which, of in both.items()}
        result |= metrics
        print_metrics(
            "held-out windows, by teacher",
            {
                f"{model}, {which}": {metric: of[model][metric] for metric in METRICS}
                for which, of in metrics.items()
                for model in ("teacher", *settings.student_specs)
            },
        )
    return Outcome(result, "adapted teacher", {key: adapted[key] for key in ("uri", "steps", "loss")})


if __name__ == "__main__":
    run_app(app)
