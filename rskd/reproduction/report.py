"""The report of a matrix, our row beside the paper's: report.md, report.html with figures, results.csv for notebooks.

records of cells, manifests of caches ─► figures of each method ─► a table for each of the paper's; claims
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rskd.config import DistillConfig
from rskd.evaluation.unique_tokens import UniqueTokens
from rskd.jobs.compare_gradients import (
    COMPARISON_HEAD,
    GRADIENTS_HEAD,
    GRADIENTS_NOTE,
    comparison_rows,
    gradient_rows,
)
from rskd.markdown import markdown_table
from rskd.pages.figures import PALETTE, reliability_diagrams, styled, unique_tokens_by_rounds
from rskd.pages.parts import definitions, figure_html, html_page, section, table
from rskd.provenance import provenance
from rskd.reproduction.beside_paper import Ours, cells, head, table_csv
from rskd.reproduction.cells import Records
from rskd.reproduction.claims import Claim, checked_claims
from rskd.reproduction.measurements import Measurements, read_measurements
from rskd.reproduction.methods import OURS, SIZES
from rskd.reproduction.results import summarise
from rskd.reproduction.tables import Row, Table
from rskd.storage import Store


def write_report(config: DistillConfig, tables: Sequence[Table], records: Records, scale: str) -> str:
    """Write the three files into the folder of `config`; returns the URI of the page."""
    ours, claims, measured = summarise(config, records), checked_claims(records), read_measurements(config)
    store = Store(config.home)
    store.write("results.csv", table_csv(tables, ours).encode())
    store.write("report.md", _markdown(scale, tables, ours, claims, measured).encode())
    store.write("report.html", _page(scale, tables, ours, claims, measured, records).encode())
    return f"{config.home}/report.html"


def _title(scale: str) -> str:
    return f"The paper at {scale}"


def _about(of: Table, scale: str) -> str:
    command = f"python -m flows.reproduce_paper --scale {scale} --table {of.name}"
    return f"The paper's setting: {of.setting}. Ours: {command}"


def _head(of: Table) -> list[str]:
    return _with_seeds(head(of), "seeds")


def _cells_of(row: Row, of: Table, ours: Mapping[str, Ours]) -> list[str]:
    return _with_seeds(cells(row, of, ours), str(ours[row.method].seeds) if row.method in ours else "–")


def _with_seeds(texts: Sequence[str], seeds: str) -> list[str]:
    return [texts[0], seeds, *texts[1:]]


def _claim_cells(claim: Claim) -> list[str]:
    return [claim.text, claim.measured, claim.bound, "yes" if claim.holds else "no"]


_CLAIMS_HEAD = ("claim", "measured", "bound, stated beforehand", "holds")
_NOTE = (
    "Mean ± standard error over seeds of initial weights and order of windows, from one teacher pass; one seed has no "
    "error. ∞: the loss diverged. % CE to full KD is taken seed by seed. The command of a table recomputes it, with "
    "--text FOLDER (rskd/reproduction/README.md)."
)


def _markdown(
    scale: str,
    tables: Sequence[Table],
    ours: Mapping[str, Ours],
    claims: Sequence[Claim],
    measured: Measurements,
) -> str:
    facts = "\n".join(f"- {name}: {value}" for name, value in provenance().items())
    parts = [f"# {_title(scale)}\n\n{facts}\n\n{_NOTE}\n"]
    for each in tables:
        rows = [_cells_of(row, each, ours) for row in each.rows]
        parts.append(f"## {each.title}\n\n{_about(each, scale)}\n\n{markdown_table(_head(each), rows)}\n")
    if measured.gradients:
        gradients = markdown_table(GRADIENTS_HEAD, gradient_rows(measured.gradients))
        beside = markdown_table(COMPARISON_HEAD, comparison_rows(measured.gradients))
        parts.append(f"## {_table_3(measured.gradients)}\n\n{GRADIENTS_NOTE}\n\n{gradients}\n\n{beside}\n")
    if measured.unique_tokens:
        laws = "\n".join(f"- {name}: {law}" for name, law in _laws(measured.unique_tokens).items())
        parts.append(f"## {_FIGURE_5}\n\n{laws}\n")
    if claims:
        parts.append(f"## Claims\n\n{markdown_table(_CLAIMS_HEAD, map(_claim_cells, claims))}\n")
    return "\n".join(parts)


def _page(
    scale: str,
    tables: Sequence[Table],
    ours: Mapping[str, Ours],
    claims: Sequence[Claim],
    measured: Measurements,
    records: Records,
) -> str:
    sections = [section("Setting", definitions(provenance()), _NOTE)]
    if claims:
        sections.append(section("Claims", table(_CLAIMS_HEAD, map(_claim_cells, claims), num_text=4)))
    for each in tables:
        rows = [_cells_of(row, each, ours) for row in each.rows]
        sections.append(section(each.title, table(_head(each), rows, num_text=1), _about(each, scale)))
    if measured.gradients:
        gradients = table(GRADIENTS_HEAD, gradient_rows(measured.gradients), num_text=1)
        beside = table(COMPARISON_HEAD, comparison_rows(measured.gradients), num_text=1)
        sections.append(section(_table_3(measured.gradients), gradients + beside, GRADIENTS_NOTE))
    shown = {
        m: record["metrics"]
        for (m, seed), record in records.items()
        if seed == 0 and m in _IN_FIGURE_3A and "metrics" in record
    }
    if shown:
        sections.append(section("Figure 3a: calibration, first seed", figure_html(reliability_diagrams(shown))))
    sections.append(section("Figure 3b: calibration by unique tokens", figure_html(_ece_by_unique_tokens(ours))))
    if any(f"{OURS}-{size}" in ours for size in SIZES):
        sections.append(section("Figure 4: gain over CE by size of student", figure_html(_gain_by_size(ours))))
    if measured.unique_tokens:
        figure = figure_html(unique_tokens_by_rounds(_unique_tokens(measured.unique_tokens)))
        sections.append(section(_FIGURE_5, figure + definitions(_laws(measured.unique_tokens))))
    return html_page("reproduction", _title(scale), sections)


_FIGURE_5 = "Figure 5: unique tokens of sampling rounds"


def _table_3(gradients: Mapping[str, Any]) -> str:
    return f"Table 3: gradients beside full KD, {gradients['tokens']:,} positions"


def _laws(record: Mapping[str, Any]) -> dict[str, str]:
    return {f"{name}, U of N rounds": found.described_law for name, found in _unique_tokens(record).items()}


def _unique_tokens(record: Mapping[str, Any]) -> dict[str, UniqueTokens]:
    return {name: UniqueTokens.from_dict(one) for name, one in record["methods"].items()}


_IN_FIGURE_3A = ("ce", "top_k-12", "top_k-50", "random-12", "systematic-12", "full_kd")


def _ece_by_unique_tokens(ours: Mapping[str, Ours]) -> go.Figure:
    figure = go.Figure()
    for color, kind in zip(PALETTE, ("top_k", "label", "random", "systematic")):
        found = [each for method, each in ours.items() if method.startswith(f"{kind}-") and "ece" in each.metrics]
        points = sorted((each.unique_tokens or 0, each.metrics["ece"].mean) for each in found)
        if points:
            x, y = zip(*points)
            figure.add_scatter(x=x, y=y, name=kind, mode="lines+markers", line={"color": color})
    figure.update_xaxes(title="unique tokens", type="log")
    figure.update_yaxes(title="ECE, %", rangemode="tozero")
    return styled(figure, height=420, showlegend=True)


def _gain_by_size(ours: Mapping[str, Ours]) -> go.Figure:
    """How far random sampling is ahead of CE, in loss and in acceptance, for each size of student."""
    pairs = [(ours[ce], ours[kd]) for ce, kd in _PAIRS_BY_SIZE if ce in ours and kd in ours]
    pairs = sorted((p for p in pairs if p[0].parameters and p[1].parameters), key=lambda pair: pair[0].parameters or 0)
    figure = make_subplots(cols=2, subplot_titles=("LM loss, nats less than CE", "acceptance, % more than CE"))
    for column, (metric, sign) in enumerate((("lm_loss", -1), ("acceptance", 1)), start=1):
        gains = [sign * (kd.metrics[metric].mean - ce.metrics[metric].mean) for ce, kd in pairs]
        x = [ce.parameters for ce, _ in pairs]
        line = {"color": PALETTE[column - 1]}
        figure.add_scatter(x=x, y=gains, mode="lines+markers", line=line, row=1, col=column)
    figure.update_xaxes(title="parameters of the student", type="log")
    figure.update_yaxes(rangemode="tozero")
    return styled(figure, height=380, showlegend=False)


_PAIRS_BY_SIZE = (("ce", OURS), *((f"ce-{size}", f"{OURS}-{size}") for size in SIZES))
