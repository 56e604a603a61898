"""The report of a distillation, and that of a cache: each one HTML page that needs no network.

evaluation.json, caches, students' logs, costs ─► Findings (rskd.jobs.report) ─► page ─► <home>/report.html
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, Literal

from rskd import costs
from rskd.cache.histogram import LABELS
from rskd.config import DistillConfig, to_yaml
from rskd.costs import Costs
from rskd.errors import ConfigError
from rskd.evaluation.downstream import mean_score
from rskd.pages.figures import histograms, loss_curves, reliability_diagrams
from rskd.pages.judged import Judged, judged_sections
from rskd.pages.parts import definitions, figure_html, html_page, section, table
from rskd.pages.wording import objective_in_words, sampling_in_words
from rskd.plan import Plan


@dataclass(frozen=True)
class Metric:
    """A column of the table of models: `sign` is +1 where more is better, -1 where less is."""

    key: str
    label: str
    unit: str
    sign: int
    format: str
    scale: float = 1.0


TABLE = (
    Metric("lm_loss", "LM loss", "nats/token", -1, ".3f"),
    Metric("ece", "ECE", "%", -1, ".1f", 100),
    Metric("top1_agreement", "Top-1 agreement", "%", +1, ".1f", 100),
    Metric("acceptance", "Acceptance", "%", +1, ".1f", 100),
    Metric("kl_to_teacher", "KL to teacher", "nats/token", -1, ".3f"),
    Metric("pct_ce_to_fullkd", "CE to full KD", "%", +1, ".0f"),
)


@dataclass(frozen=True)
class Findings:
    """All that the page shows."""

    config: DistillConfig
    evaluation: dict[str, Any]
    caches: dict[str, dict[str, Any]]
    logs: dict[str, list[dict[str, float]]]
    costs: Mapping[str, Costs] = field(default_factory=dict)  # by stage
    plans: Sequence[Plan] = ()
    judged: Judged = field(default_factory=Judged)
    made_from: str = ""  # their digest


def render(findings: Findings) -> str:
    """The page."""
    config, models = findings.config, findings.evaluation["models"]
    scope = f"{findings.evaluation['windows']:,} held-out windows, {_measured_tokens(findings.evaluation)}"
    sections = [
        section("Setting", _facts(config)),
        section("Teacher and students", _models_table(config, models), f"On {scope}. {_LEGEND}"),
        section("Training loss", figure_html(loss_curves(findings.logs)), _LOSS_NOTE),
        section("Reliability", figure_html(reliability_diagrams(models)), _RELIABILITY_NOTE),
    ]
    if any("tasks" in model for model in models.values()):
        sections.append(section("Downstream tasks", _tasks_table(models), _TASKS_NOTE))
    if any("speculative" in model for model in models.values()):
        sections.append(section("Speculative decoding", _speculative_table(models), _SPECULATIVE_NOTE))
    sections += judged_sections(findings.judged)
    if findings.caches:
        body = _caches_table(findings.caches) + _histograms(findings.caches)
        sections.insert(2, section("Logit caches", body, _CACHE_NOTE))
    if findings.plans:
        sections.append(section("Plan", _plans_table(findings.plans), _PLANS_NOTE))
    if findings.costs:
        sections.append(section("Costs", _costs_table(config, findings.costs), _costs_note(config)))
    settings = escape(to_yaml(config))
    sections.append(f"<details><summary>Configuration</summary><pre>{settings}</pre></details>")
    return html_page("rskd distillation report", config.name, sections, findings.made_from)


def write_cache_page(uri: str, cache: dict[str, Any], file: Path) -> None:
    """Write what `inspect` says of the cache at `uri`, with its histograms, to a local HTML file.

    Raises ConfigError if the file cannot be written.
    """
    loss = cache["teacher_lm_loss"]
    progress = f"{cache['parts']:,} of {cache['parts_expected'] or '?'} parts"
    facts = {
        "State": f"finished, generation {cache['generation']}" if cache["complete"] else f"unfinished: {progress}",
        "Teacher": f"{cache['teacher']['model']} ({cache['teacher']['dtype']})",
        "Windows": f"{cache['rows']:,} of {cache['seq_len']:,} positions",
        "Vocabulary": f"{cache['vocab_size']:,} ids",
        "BOS": cache["bos"],
        "Teacher's own loss": "not measured" if loss is None else f"{loss:.3f} nats/token",
    }
    sections = [section("Cache", definitions(facts) + _caches_table({uri: cache}), _CACHE_NOTE)]
    if cache["histograms"]:
        sections.append(section("Positions", _histograms({uri: cache})))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(html_page("rskd logit cache", uri, sections), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--html {file} cannot be written ({error.strerror}): name another file") from None


def _facts(config: DistillConfig) -> str:
    source = config.corpus.source
    isolated = ", documents isolated" if config.corpus.isolate_documents else ""
    facts = {
        "Teacher": f"{config.teacher.model} ({config.teacher.dtype})",
        "Corpus": source.kind + (f" {source.uri}" if source.uri else ""),
        "Windows": f"{config.corpus.seq_len:,} positions{isolated}",
        "Students": ", ".join(config.student_specs),
    }
    return definitions(facts)


def _models_table(config: DistillConfig, models: dict[str, dict[str, Any]]) -> str:
    columns = [metric for metric in TABLE if any(metric.key in model for model in models.values())]
    students = [models[name] for name in config.student_specs]
    best = {
        metric.key: max(metric.sign * model[metric.key] for model in students if metric.key in model)
        for metric in columns
    }
    head = ["Model", "Objective", "Targets"] + [
        f"{metric.label} {'↑' if metric.sign > 0 else '↓'}<small>{metric.unit}</small>" for metric in columns
    ]
    rows = [["teacher", "", ""] + [_value(models["teacher"], metric, None) for metric in columns]]
    for name, spec in config.student_specs.items():
        chosen = best if len(students) > 1 else {}
        values = [_value(models[name], metric, chosen.get(metric.key)) for metric in columns]
        sampling = config.cache_samplings[spec.sampling].model_dump() if spec.objective.kind == "sparse_kd" else None
        rows.append([escape(name), *objective_in_words(spec.objective.model_dump(), sampling), *values])
    return table(head, rows, num_text=3)


def _value(model: dict[str, Any], metric: Metric, best: float | None) -> str:
    if metric.key not in model:
        return "–"
    text = format(metric.scale * model[metric.key], metric.format)
    error = model["standard_error"].get(metric.key)
    if error:
        text += f"<small>± {format(metric.scale * error, metric.format)}</small>"
    return f"<b>{text}</b>" if best == metric.sign * model[metric.key] else text


def _tasks_table(models: dict[str, dict[str, Any]]) -> str:
    """A row for each metric of each task, a column for each model."""
    scores = {
        name: {
            (task, metric): found
            for task, metrics in model.get("tasks", {}).items()
            for metric, found in metrics.items()
        }
        for name, model in models.items()
    }
    rows = [
        [escape(task), escape(metric), *(_task_value(found.get((task, metric))) for found in scores.values())]
        for task, metric in dict.fromkeys(key for found in scores.values() for key in found)
    ]
    means = [mean_score(model.get("tasks", {})) for model in models.values()]
    rows.append(["mean", "acc_norm or acc", *("–" if mean is None else f"{mean:.4f}" for mean in means)])
    return table(["Task", "Metric", *(escape(name) for name in models)], rows, num_text=2)


def _task_value(found: dict[str, float] | None) -> str:
    if found is None:
        return "–"
    error = found.get("standard_error")
    return f"{found['value']:.4f}" + (f"<small>± {error:.4f}</small>" if error else "")


def _speculative_table(models: dict[str, dict[str, Any]]) -> str:
    head = ["Draft", "Accepted<small>%, measured</small>", "Accepted<small>%, predicted</small>", "z"]
    head += ["Accepted a round<small>measured</small>", "Accepted a round<small>predicted</small>", "Tokens decided on"]
    rows = [
        [
            escape(name),
            f"{100 * found['acceptance']:.2f}",
            f"{100 * found['predicted_acceptance']:.2f}<small>± {100 * found['standard_error']:.2f}</small>",
            f"{found['z_score']:+.2f}",
            f"{found['accepted_per_round']:.3f}",
            f"{found['predicted_per_round']:.3f}",
            f"{found['decided']:,}",
        ]
        for name, found in ((name, model["speculative"]) for name, model in models.items() if "speculative" in model)
    ]
    return table(head, rows, num_text=1)


def _measured_tokens(evaluation: dict[str, Any]) -> str:
    """How many tokens were measured: of conversations those that have a loss."""
    tokens = evaluation["tokens"]
    with_loss = sum(evaluation["models"]["teacher"]["reliability"]["count"])
    return f"{tokens:,} tokens" if with_loss == tokens else f"{with_loss:,} of {tokens:,} tokens, which have a loss"


def _caches_table(caches: dict[str, dict[str, Any]]) -> str:
    head = ["Cache", "Sampling", "Tokens", "Size<small>MiB</small>", "Bytes<small>per token</small>"]
    head.append("Unique tokens<small>per position</small>")
    rows = [
        [
            escape(name),
            sampling_in_words(cache["sampling"]),
            f"{cache['tokens']:,}" + (f"<small>{cache['loss_tokens']:,} with a loss</small>" if masked else ""),
            f"{cache['bytes'] / 2**20:,.1f}",
            _ratio(cache, "bytes", 1),
            _ratio(cache, "unique", 2),
        ]
        for name, cache in caches.items()
        for masked in ["loss_tokens" in cache]
    ]
    return table(head, rows, num_text=2)


def _ratio(cache: dict[str, Any], of: Literal["bytes", "unique"], digits: int) -> str:
    """To the tokens of a cache; of a masked one also to those that have a loss."""
    named = {f"{of}_per_token": "", f"{of}_per_loss_token": " with a loss"}
    told = [f"{cache[key]:.{digits}f}{said}" for key, said in named.items() if cache.get(key) is not None]
    return f"{told[0]}{''.join(f'<small>{one}</small>' for one in told[1:])}" if told else "–"


def _plans_table(plans: Sequence[Plan]) -> str:
    """What each stage ran on."""
    rows = [[escape(plan.title), escape(plan.device), _numbers(plan)] for plan in plans]
    return table(["Stage", "Runs on", "Numbers"], rows, num_text=3)


def _numbers(plan: Plan) -> str:
    """`workers 8 (auto), gpus_per_worker 1 (auto), micro_batch 16 (measured)`."""
    return ", ".join(f"{key} {value:g} ({plan.origin[key]})" for key, value in plan.numbers.items())


def _costs_table(config: DistillConfig, stages: Mapping[str, Costs]) -> str:
    return table(costs.HEAD, [map(escape, row) for row in costs.rows(stages, config.costs)], num_text=1)


def _costs_note(config: DistillConfig) -> str:
    prices = config.costs
    known = {"GPU-hour": prices.price_per_gpu_hour, "core-hour": prices.price_per_core_hour}
    told = [f"{price:g} a {unit}" for unit, price in known.items() if price is not None]
    return f"{_COSTS_NOTE} Prices: {', '.join(told) or 'none'}."


def _histograms(caches: dict[str, dict[str, Any]]) -> str:
    """A figure for unique tokens and for each statistic that a cache has."""
    by_name = {
        name: {uri: cache["histograms"][name] for uri, cache in caches.items() if name in cache["histograms"]}
        for name in LABELS
    }
    return "".join(figure_html(histograms(LABELS[name], by_cache)) for name, by_cache in by_name.items() if by_cache)


_LEGEND = (
    "↓ less is better, ↑ more is better; the best student in bold; ± one standard error, clustered by window. "
    "ECE: expected calibration error of the top-1 prediction. Acceptance: expected acceptance rate in speculative "
    "sampling with the student as draft. CE to full KD: how far the loss has come from plain cross-entropy (0 %) to "
    "distillation from the whole teacher distribution (100 %)."
)
_TASKS_NOTE = "Zero-shot, by the LM evaluation harness; ± one standard error over the examples."
_SPECULATIVE_NOTE = (
    "The teacher continues held-out windows at temperature 1 with the student as its draft, by Transformers' assisted "
    "generation with drafts of fixed length. Predicted: Σ min(p, t) at the contexts where a drafted token was decided "
    "on, ± the standard error by which the measured share may differ from it by chance; z is how far it does."
)
_LOSS_NOTE = (
    "Faint: each step. Strong: running mean. Losses of different objectives are not comparable: "
    "a KD loss contains the entropy of its targets, a top-k one only the mass that it keeps."
)
_RELIABILITY_NOTE = (
    "Accuracy of the top-1 prediction by its confidence. On the dotted line a model is calibrated; "
    "bars below it are over-confident. Darker bars hold more tokens."
)
_PLANS_NOTE = (
    "What each stage ran on, the last time that it worked. auto: from what there was; measured: the largest batch that "
    "fits; set: by the configuration."
)
_COSTS_NOTE = (
    "Core- and GPU-seconds: what a stage reserves, busy or not, times its wall seconds, over all attempts that its "
    "output is made of, failed ones included (not those that were killed without notice). Tokens: positions that were "
    "packed, cached, trained on or evaluated on. Bytes: of outputs, without checkpoints. Money: in the currency of the "
    "prices, – where one is missing."
)
_CACHE_NOTE = "Size counts every file of the cache. Unique tokens: distinct ids kept at a position."
