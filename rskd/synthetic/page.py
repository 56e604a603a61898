"""The page of the synthetic study: the figures, their tables, and by which command, when and where they were made."""

from __future__ import annotations

from collections.abc import Mapping

from rskd.pages.figures import reliability_diagrams
from rskd.pages.parts import definitions, figure_html, html_page, section, table
from rskd.provenance import provenance
from rskd.synthetic.figures import zipf_estimates
from rskd.synthetic.findings import Calibration, Findings
from rskd.synthetic.mean import Mean
from rskd.synthetic.zipf import Estimate

_TITLES = {
    "gaussian": "Figure 2b: Gaussian classes",
    "digits": "Figure 2c: noisy handwritten digits",
    "cifar100": "Figure 2c: CIFAR-100",
}


def render(findings: Findings) -> str:
    """The page."""
    settings = findings.settings
    facts = provenance() | {"seeds": f"{settings.seeds} of each task, {settings.steps:,} steps"}
    sections = [
        section("Setting", definitions(facts)),
        section(
            "Figure 2a: what the targets are on average",
            figure_html(zipf_estimates(findings.zipf_probabilities, findings.zipf)) + _zipf_table(findings.zipf),
            _ZIPF_NOTE.format(rounds=settings.rounds),
        ),
    ]
    for task, models in findings.calibration.items():
        panels = {name: {"ece": model.ece.value, "reliability": model.reliability} for name, model in models.items()}
        body = figure_html(reliability_diagrams(panels)) + _calibration_table(models)
        sections.append(section(_TITLES[task], body, _CALIBRATION_NOTE))
    return html_page("rskd synthetic study", "Targets and calibration", sections)


def _zipf_table(estimates: Mapping[str, Estimate]) -> str:
    head = ["Method", "Unique tokens", "Bias of rank 1<small>%</small>", "Bias of the top 20<small>%</small>"]
    head += ["Bias²<small>10⁻⁴</small>", "Variance<small>10⁻⁴</small>", "Squared error<small>10⁻⁴</small>"]
    rows = [
        [
            name,
            f"{found.unique_tokens.value:.1f}",
            *(_signed(mean) for mean in (found.top1_bias, found.head_bias)),
            *(_with_error(mean, 1e4, 1) for mean in (found.bias_squared, found.variance, found.squared_error)),
        ]
        for name, found in estimates.items()
    ]
    return table(head, rows, num_text=1)


def _calibration_table(models: Mapping[str, Calibration]) -> str:
    head = ["Model", "Unique tokens", "ECE<small>%</small>", "ECE above full KD<small>%</small>"]
    head += ["Confidence - accuracy<small>%</small>", "Accuracy<small>%</small>", "Loss<small>nats</small>"]
    rows = [
        [
            name,
            "–" if model.unique_tokens is None else f"{model.unique_tokens:.1f}",
            _with_error(model.ece, 100, 2),
            _signed(model.ece_above_full_kd),
            _signed(model.overconfidence),
            _with_error(model.accuracy, 100, 2),
            _with_error(model.loss, 1, 4),
        ]
        for name, model in models.items()
    ]
    return table(head, rows, num_text=1)


def _with_error(mean: Mean, scale: float, decimals: int, sign: str = "") -> str:
    value, error = (f"{scale * number:{form}.{decimals}f}" for number, form in ((mean.value, sign), (mean.error, "")))
    return f"{value}<small>± {error}</small>"


def _signed(mean: Mean) -> str:
    """A difference of shares, in percent."""
    return _with_error(mean, 100, 2, "+")


_ZIPF_NOTE = (
    "A teacher that gives token i of 100,000 a probability ∝ 1/i. Lines: the average over {rounds:,} positions of what "
    "a student would learn (targets over their sum), ± one standard error. Top-k keeps 20 tokens, the samplers take 22 "
    "rounds. Bias² and variance are sums over the vocabulary, estimated without bias from pairs of positions: they may "
    "come out below zero. A ghost token has no target of its own outside the top k, and is not shown."
)
_CALIBRATION_NOTE = (
    "Accuracy by confidence of the predicted class; bars below the dotted line are over-confident. All students start "
    "from the same weights and see the same examples. ± one standard error over the seeds; differences to full KD are "
    "paired by seed. ECE of 50,000 test examples is never quite zero: chance alone gives some tenths of a percent."
)
