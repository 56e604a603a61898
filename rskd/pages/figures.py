"""Figures of a distillation, as plotly objects: for the report and for tracking."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rskd.cache.histogram import Histogram, grouped

if TYPE_CHECKING:
    from rskd.evaluation.gradient_similarity import Similarity
    from rskd.evaluation.unique_tokens import UniqueTokens

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito: safe for the colour-blind
_DASHES = ("solid", "dash", "dot", "dashdot")
_MOST_BARS = 512
_GREY, _GRID = "#6b7280", "#e5e7eb"
_FONT = {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 13, "color": "#1f2937"}


def loss_curves(logs: Mapping[str, Sequence[Mapping[str, float]]]) -> go.Figure:
    """Training loss by tokens for each student; `logs` are the records {tokens, loss, ...} of its steps.

    The steps themselves are faint, a running mean over about a fiftieth of them is drawn strongly.
    """
    figure = go.Figure()
    for name, color in _colors(logs).items():
        tokens = [record["tokens"] for record in logs[name]]
        losses = [record["loss"] for record in logs[name]]
        line = {"x": tokens, "mode": "lines", "name": name, "legendgroup": name}
        figure.add_scatter(
            **line, y=losses, line={"color": color, "width": 1}, opacity=0.3, hoverinfo="skip", showlegend=False
        )
        figure.add_scatter(
            **line,
            y=_running_mean(losses, decay=1 - 1 / max(1, len(losses) / 50)),
            line={"color": color, "width": 2},
            hovertemplate="%{y:.3f} nats/token after %{x:,} tokens",
        )
    figure.update_xaxes(title="training tokens", rangemode="tozero")
    figure.update_yaxes(title="training loss, nats/token")
    return styled(figure, height=420, showlegend=True, hovermode="x unified")


def reliability_diagrams(evaluated: Mapping[str, Mapping[str, Any]]) -> go.Figure:
    """Accuracy by confidence, a panel for each model; `evaluated` holds its `ece` and `reliability` bins.

    A bar below the diagonal is over-confidence. Darker bars hold more of the tokens.
    """
    num_rows = math.ceil(len(evaluated) / 4)
    num_columns = math.ceil(len(evaluated) / num_rows)
    spacing = 0.5 / num_rows if num_rows > 1 else 0
    titles = [f"{name}<br><sup>ECE {100 * model['ece']:.1f} %</sup>" for name, model in evaluated.items()]
    figure = make_subplots(num_rows, num_columns, subplot_titles=titles, shared_yaxes=True, vertical_spacing=spacing)
    for panel, (name, color) in enumerate(_colors(evaluated).items()):
        row, col = panel // num_columns + 1, panel % num_columns + 1
        bins = evaluated[name]["reliability"]
        num_bins, total = len(bins["count"]), max(1, sum(bins["count"]))
        shares = [count / total for count in bins["count"]]
        figure.add_bar(
            x=[(index + 0.5) / num_bins for index in range(num_bins)],
            y=bins["accuracy"],
            width=0.92 / num_bins,
            marker={"color": color, "opacity": [0.25 + 0.75 * (share / max(shares)) ** 0.5 for share in shares]},
            customdata=[[confidence, share] for confidence, share in zip(bins["confidence"], shares, strict=True)],
            hovertemplate="confidence %{customdata[0]:.3f}<br>accuracy %{y:.3f}<br>%{customdata[1]:.1%} of the tokens"
            f"<extra>{name}</extra>",
            row=row,
            col=col,
        )
        figure.add_scatter(
            x=[0, 1],
            y=[0, 1],
            mode="lines",
            line={"color": _GREY, "dash": "dot", "width": 1},
            hoverinfo="skip",
            row=row,
            col=col,
        )
        figure.update_xaxes(title="confidence", range=[0, 1], row=row, col=col)
    figure.update_yaxes(range=[0, 1])
    figure.update_yaxes(title="accuracy", col=1)
    return styled(figure, height=90 + 290 * num_rows, showlegend=False)


def gradient_angles(similarities: Sequence[Similarity]) -> go.Figure:
    """Angle to the gradient of full KD: by unique tokens over the whole batch, and by the size of the batch."""
    figure = make_subplots(1, 2, shared_yaxes=True, horizontal_spacing=0.06)
    methods = dict.fromkeys(row.sampling.method for row in similarities)
    for method, color in _colors(methods).items():
        rows = sorted((row for row in similarities if row.sampling.method == method), key=lambda row: row.unique_tokens)
        line: dict[str, Any] = {"legendgroup": method, "mode": "lines+markers"}
        figure.add_scatter(
            **line,
            x=[row.unique_tokens for row in rows],
            y=[row.angle for row in rows],
            error_y={"array": [row.standard_error["angle"] for row in rows]},
            name=method,
            line={"color": color},
            text=[row.name for row in rows],
            hovertemplate="%{text}: %{y:.2f}° at %{x:.1f} unique tokens",
            row=1,
            col=1,
        )
        for index, row in enumerate(rows):
            figure.add_scatter(
                **line,
                x=list(row.angle_by_tokens),
                y=list(row.angle_by_tokens.values()),
                name=row.name,
                line={"color": color, "dash": _DASHES[index % len(_DASHES)]},
                showlegend=False,
                hovertemplate="%{y:.2f}° over %{x:,} positions",
                row=1,
                col=2,
            )
    figure.update_xaxes(title="unique tokens", type="log", col=1)
    figure.update_xaxes(title="positions in the batch", type="log", col=2)
    figure.update_yaxes(type="log", title="angle, degrees", col=1)
    figure.update_yaxes(type="log", col=2)
    return styled(figure, height=420, showlegend=True)


def unique_tokens_by_rounds(by_method: Mapping[str, UniqueTokens]) -> go.Figure:
    """Mean unique tokens by sampling rounds, and the power law through them (paper, Figure 5)."""
    figure = go.Figure()
    for method, color in _colors(by_method).items():
        unique = by_method[method]
        law = unique.law
        figure.add_scatter(
            x=unique.rounds,
            y=unique.means,
            error_y={"array": unique.standard_errors},
            mode="markers",
            name=method,
            marker={"color": color},
            hovertemplate="%{y:.2f} unique tokens from %{x} rounds",
        )
        figure.add_scatter(
            x=unique.rounds,
            y=[law.unique_tokens(rounds) for rounds in unique.rounds],
            mode="lines",
            name=f"{law.coefficient:.2f}·N^{law.exponent:.3f}",
            line={"color": color, "dash": "dot"},
            hoverinfo="skip",
        )
    figure.update_xaxes(title="sampling rounds N", type="log")
    figure.update_yaxes(title="unique tokens", type="log")
    return styled(figure, height=420, showlegend=True)


def histograms(label: str, by_cache: Mapping[str, Histogram]) -> go.Figure:
    """Share of the positions by what `label` says, with its unit; a histogram of each cache, all of the same bins."""
    figure = go.Figure()
    for name, color in _colors(by_cache).items():
        bins = grouped(by_cache[name], _MOST_BARS)
        low, width, counts = bins["low"], bins["width"], bins["counts"]
        centre = low if width == 1 else low + width / 2  # a bin of width 1 is a whole number
        figure.add_bar(
            x=[centre + index * width for index in range(len(counts))],
            y=[count / max(1, sum(counts)) for count in counts],
            name=name,
            marker={"color": color},
            hovertemplate="%{y:.2%} at %{x}",
        )
    figure.update_xaxes(title=label)
    figure.update_yaxes(title="share of positions", tickformat=".0%")
    return styled(figure, height=320, showlegend=len(by_cache) > 1, bargap=0.1)


def _colors(names: Mapping[str, Any]) -> dict[str, str]:
    """Color of each model; the teacher is grey, so that a student has one colour in every figure."""
    students = [name for name in names if name != "teacher"]
    colors = {name: PALETTE[index % len(PALETTE)] for index, name in enumerate(students)}
    return {name: colors.get(name, _GREY) for name in names}


def _running_mean(values: Sequence[float], decay: float) -> list[float]:
    """Exponential running mean that starts at the first value."""
    return list(accumulate(values, lambda mean, value: decay * mean + (1 - decay) * value))


def styled(figure: go.Figure, **layout: Any) -> go.Figure:
    """The look that all figures share, and `layout` of this one."""
    figure.update_layout(
        template="plotly_white",
        font=_FONT,
        margin={"l": 60, "r": 20, "t": 56, "b": 56},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        **layout,
    )
    figure.update_xaxes(gridcolor=_GRID, zeroline=False)
    return figure.update_yaxes(gridcolor=_GRID, zeroline=False)
