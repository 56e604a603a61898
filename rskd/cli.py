"""The command line: one verb a stage.

    argv ─► run_app ─► a verb below ─► rskd.jobs, rskd.cache, … ─► Outcome

`rskd.run_app` runs them and turns what they return or raise into text, JSON and exit codes.
Heavy imports wait until a verb runs, so that `--help` answers at once.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from rskd.config import load_config
from rskd.errors import ConfigError, OutputError
from rskd.outcome import Outcome
from rskd.run_app import run_app

if TYPE_CHECKING:
    from rskd.tracking.registry import Registry

app = typer.Typer(
    name="rskd",
    help="Distil large language models from cached, sampled teacher logits.",
    epilog="Every command takes --json (one JSON object on stdout and nothing else there) and --debug (tracebacks).",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

ConfigArgument = Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="The distillation's configuration.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a value; repeatable.")
]
StudentOption = Annotated[
    str | None, typer.Option("--student", metavar="NAME", help="Which one, where there are several.")
]
UriArgument = Annotated[str, typer.Argument(metavar="URI", help="A cache: a local folder or s3://bucket/prefix.")]


def main() -> NoReturn:
    """Entry point of the `rskd` command."""
    run_app(app)


@app.command()
def pack(config: ConfigArgument, overrides: SetOption = None) -> Outcome:
    """Cut the corpus into packed windows, for training and held out."""
    from rskd.jobs.pack import pack_corpus

    settings = load_config(config, overrides or ())
    return Outcome(pack_corpus(settings), f"corpus {settings.home}/corpus")


@app.command()
def cache(config: ConfigArgument, overrides: SetOption = None) -> Outcome:
    """Run the teacher once over the corpus and write its sampled targets."""
    from rskd.jobs.cache import cache_logits

    settings = load_config(config, overrides or ())
    summaries = cache_logits(settings)
    return Outcome(summaries, f"caches {settings.home}/caches", _flat(summaries))


@app.command()
def train(
    config: ConfigArgument,
    overrides: SetOption = None,
    student: Annotated[str | None, typer.Option(metavar="NAME", help="One student; all by default.")] = None,
) -> Outcome:
    """Train the students from the caches, side by side where there is room."""
    from rskd.jobs.train import train_student
    from rskd.jobs.train_all import train_all

    settings = load_config(config, overrides or ())
    names = list(settings.student_specs) if student is None else [student]
    summaries = train_all(settings, names, train_student)
    return Outcome(summaries, f"students {settings.home}/students", _flat(summaries))


@app.command()
def evaluate(config: ConfigArgument, overrides: SetOption = None) -> Outcome:
    """Evaluate teacher and students on the held-out windows."""
    from rskd.jobs.evaluate import evaluate_students

    settings = load_config(config, overrides or ())
    metrics = evaluate_students(settings)
    return Outcome(metrics, f"evaluation {settings.evaluation_uri}", _flat(metrics))


ModelOption = Annotated[
    str | None,
    typer.Option("--student", metavar="NAME", help="One model that answers; by default all of the config."),
]


@app.command()
def generate(config: ConfigArgument, overrides: SetOption = None, student: ModelOption = None) -> Outcome:
    """Let students answer the sets of prompts of section generate."""
    from rskd.jobs.generate import generate_answers
    from rskd.lineage.answers import models_that_answer

    settings = load_config(config, overrides or ())
    names = models_that_answer(settings) if student is None else [student]
    summaries = {name: generate_answers(settings, name) for name in names}
    return Outcome(summaries, f"answers {settings.home}/answers", _flat(summaries))


@app.command()
def judge(config: ConfigArgument, overrides: SetOption = None, student: ModelOption = None) -> Outcome:
    """Have the students' answers rated beside references by a large model; generates what is missing."""
    from rskd.jobs.judge import judge_models, verdict_rows

    settings = load_config(config, overrides or ())
    found = judge_models(settings, student)
    return Outcome(found, f"judgements {settings.home}/judgements", verdict_rows(found))


@app.command()
def report(config: ConfigArgument, overrides: SetOption = None) -> Outcome:
    """Write one self-contained HTML page about the distillation."""
    from rskd.jobs.report import write_report

    settings = load_config(config, overrides or ())
    return Outcome({"report": write_report(settings)}, "report")


@app.command()
def status(config: ConfigArgument, overrides: SetOption = None) -> Outcome:
    """Say of each stage whether its output is done, stale, unfinished or missing, and what a run would do."""
    from rskd.lineage.status import status as status_of

    settings = load_config(config, overrides or ())
    stages = status_of(settings)
    rows = {one.output: " · ".join(filter(None, (one.state, one.then, one.reason))) for one in stages}
    return Outcome({"stages": [asdict(one) for one in stages]}, f"status of {settings.home}", rows)


def _count(text: str) -> int:
    """A whole number, as 1000000, 1_000_000, 1e6, 1M."""
    factors = {"k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}
    number, factor = (text[:-1], factors[text[-1].lower()]) if text[-1:].lower() in factors else (text, 1)
    try:
        count = float(number) * factor
    except ValueError:
        count = 0.0
    if count < 1 or count != int(count):
        raise typer.BadParameter(f"{text!r} is no whole number above 0: write 1000000, 1e6 or 1M")
    return int(count)


@app.command()
def estimate(
    config: ConfigArgument,
    overrides: SetOption = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            parser=_count, metavar="N", help="Tokens to plan for, as 1e12 or 1T; the packed corpus by default."
        ),
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="GPUs of a cluster to plan for; this machine's by default.")
    ] = None,
    gpu_memory: Annotated[
        float | None, typer.Option(min=1, metavar="GIB", help="Memory of each: says which students fit.")
    ] = None,
    probe: Annotated[
        int | None,
        typer.Option(min=1, metavar="WINDOWS", help="Run the teacher on some windows first: how many unique tokens?"),
    ] = None,
) -> Outcome:
    """Estimate storage, time, money, memory and a store's requests before anything is run."""
    from rskd.estimate import estimate as estimate_costs
    from rskd.estimate import probe as probe_teacher

    settings = load_config(config, overrides or ())
    if probe is not None:
        probe_teacher(settings, windows=probe)
    costs = estimate_costs(settings, tokens=tokens, gpus=gpus, gpu_memory_gib=gpu_memory)
    return Outcome(costs, "estimate", _flat(costs))


@app.command()
def inspect(
    uri: UriArgument,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page with the histograms, too.")] = None,
) -> Outcome:
    """Say what a cache or a packed corpus holds, how large it is, and how far an unfinished cache has come."""
    from rskd.cache.inspection import inspect as inspect_cache
    from rskd.corpus.inspection import inspect_corpus, is_corpus

    if html is None and is_corpus(uri):
        found = inspect_corpus(uri)
        return Outcome(found, f"corpus {uri}", _flat(found))
    found = inspect_cache(uri)
    if html is not None:
        from rskd.pages.report import write_cache_page

        write_cache_page(uri, found, html)
    facts = {key: value for key, value in found.items() if key != "histograms"}
    return Outcome(found, f"cache {uri}", _flat(facts), found["histograms"])


@app.command()
def verify(
    uri: UriArgument,
    repair: Annotated[bool, typer.Option(help="Remove what is corrupt, so that a rerun recomputes it.")] = False,
    parts: Annotated[
        str | None, typer.Option(metavar="RANGES", help="Check some parts of a finished cache alone: 0-9,500.")
    ] = None,
) -> Outcome:
    """Check every file of a cache."""
    from rskd.cache.checks import keep_check, manifest_digest
    from rskd.cache.verify import parse_parts, verify_parts
    from rskd.cache.verify import verify as verify_cache

    if parts is not None:
        if repair:
            raise ConfigError("--repair checks every part, --parts some: leave one of them out")
        some = verify_parts(uri, parse_parts(parts))
        return Outcome(some.to_dict(), f"cache {uri}", exit_code=0 if some.ok else OutputError.exit_code)
    manifest = manifest_digest(uri)
    found = verify_cache(uri, repair=repair)
    keep_check(uri, "verify", found.to_dict(), manifest=manifest)
    return Outcome(found.to_dict(), f"cache {uri}", exit_code=0 if found.ok else OutputError.exit_code)


@app.command()
def audit(
    uri: UriArgument,
    teacher: Annotated[str, typer.Option(metavar="MODEL", help="The teacher that the cache should come from.")],
    rows: Annotated[int, typer.Option(min=1, help="Windows to rerun the teacher on.")] = 16,
    ignore_fingerprint: Annotated[bool, typer.Option(help="Do not fail for another fingerprint alone.")] = False,
    engine: Annotated[
        Literal["transformers", "vllm"], typer.Option(help="What runs the teacher, whatever made the cache.")
    ] = "transformers",
    python: Annotated[
        str | None, typer.Option(metavar="PATH", help="Interpreter that vllm is in; by default that of .venv-vllm.")
    ] = None,
    trust_remote_code: Annotated[bool, typer.Option(help="Run code that comes with the model.")] = False,
) -> Outcome:
    """Rerun the teacher on random windows and test that the cache holds its unbiased, aligned samples."""
    from rskd.cache.checks import keep_check, manifest_digest
    from rskd.jobs.audit import audit as audit_by

    manifest = manifest_digest(uri)
    found = audit_by(
        uri,
        teacher,
        engine=engine,
        python=python,
        rows=rows,
        ignore_fingerprint=ignore_fingerprint,
        trust_remote_code=trust_remote_code,
    )
    keep_check(uri, "audit", found.to_dict(), manifest=manifest)
    return Outcome(found.to_dict(), f"audit {uri}", exit_code=0 if found.ok else OutputError.exit_code)


@app.command()
def export(
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="A training checkpoint or a student.")],
    directory: Annotated[str, typer.Argument(metavar="DIR", help="New Hugging Face directory, local or s3://.")],
) -> Outcome:
    """Write a checkpoint as an ordinary Hugging Face directory."""
    from rskd.student.checkpoint import export_checkpoint

    return Outcome({"student": str(export_checkpoint(checkpoint, directory))}, "export")


NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="A registered model.")]
TrackingOption = Annotated[
    str | None,
    typer.Option(metavar="URI", envvar="MLFLOW_TRACKING_URI", help="MLflow; that of .rskd by default."),
]


@app.command()
def champion(name: NameArgument, tracking_uri: TrackingOption = None) -> Outcome:
    """Say which version of a registered model is the champion, and what the others are."""
    found = _registry(name, tracking_uri).summary()
    return Outcome(found, f"registered model {name}", _flat(found))


@app.command()
def promote(
    name: NameArgument,
    version: Annotated[int | None, typer.Option(min=1, help="The challenger by default.")] = None,
    tracking_uri: TrackingOption = None,
) -> Outcome:
    """Make a version the champion by hand, whatever the gate said of it."""
    registry = _registry(name, tracking_uri)
    registry.promote(registry.challenger().version if version is None else version)
    found = registry.summary()
    return Outcome(found, f"registered model {name}", _flat(found))


@app.command()
def rollback(name: NameArgument, tracking_uri: TrackingOption = None) -> Outcome:
    """Make the champion of before the champion again; once more takes that back."""
    registry = _registry(name, tracking_uri)
    registry.rollback()
    found = registry.summary()
    return Outcome(found, f"registered model {name}", _flat(found))


def _registry(name: str, tracking_uri: str | None) -> Registry:
    from rskd.tracking.registry import Registry

    return Registry.at(tracking_uri, name)


@app.command()
def dashboard(
    root: Annotated[str, typer.Argument(metavar="ROOT", help="A storage.root: a local folder or s3://bucket/prefix.")],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="The page; ROOT/dashboard.html by default.")] = None,
    serve: Annotated[
        int | None, typer.Option(min=0, max=65535, metavar="PORT", help="Serve it on 127.0.0.1 in place of --out.")
    ] = None,
    tracking_uri: Annotated[
        str | None, typer.Option(metavar="URI", envvar="MLFLOW_TRACKING_URI", help="MLflow; that of ROOT by default.")
    ] = None,
) -> Outcome:
    """Write one page of everything that was distilled under a root."""
    from rskd.dashboard.publish import serve_dashboard, write_dashboard

    if serve is not None:
        return Outcome(serve_dashboard(root, serve, tracking_uri=tracking_uri), "dashboard")
    return Outcome(write_dashboard(root, out, tracking_uri=tracking_uri), "dashboard")


@app.command()
def synthetic(
    out: Annotated[str, typer.Option(metavar="DIR", help="Folder of the page and of its numbers.")] = ".rskd/synthetic",
    seeds: Annotated[int, typer.Option(help="Runs of each classification task, for standard errors.")] = 3,
    steps: Annotated[int, typer.Option(help="Training steps of each model.")] = 500,
    rounds: Annotated[int, typer.Option(help="Positions that are drawn on the Zipf distribution.")] = 1000,
    cifar100: Annotated[
        Path | None, typer.Option(metavar="DIR", help="CIFAR-100, binary version, in place of scikit-learn's digits.")
    ] = None,
) -> Outcome:
    """Show bias, variance and calibration of each method on synthetic data (paper, Figure 2)."""
    from rskd.synthetic.study import Settings, run_study, table_rows

    settings = Settings(seeds=seeds, steps=steps, rounds=rounds, cifar100=cifar100)
    found = run_study(settings, out)
    return Outcome(found, "synthetic study", table_rows(found))


def _flat(summaries: dict[str, Any]) -> dict[str, Any]:
    """One row for each innermost value, named outer.inner."""
    rows = {}
    for name, summary in summaries.items():
        if isinstance(summary, dict):
            rows.update({f"{name}.{key}": value for key, value in _flat(summary).items()})
        else:
            rows[name] = summary
    return rows
