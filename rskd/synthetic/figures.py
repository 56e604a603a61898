"""The figure of the synthetic study that the house has not yet: Figure 2a."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from rskd.pages.figures import PALETTE, styled
from rskd.synthetic.zipf import Estimate

_SHOWN = ("top_k", "top_k + smoothing", "top_k + naive fix", "random", "systematic")  # the others at a click


def zipf_estimates(probabilities: Sequence[float], estimates: Mapping[str, Estimate]) -> go.Figure:
    """Average effective target of each method at the first ranks, beside the teacher's `probabilities`."""
    ranks = list(range(1, len(probabilities) + 1))
    figure = go.Figure()
    figure.add_scatter(x=ranks, y=probabilities, name="teacher (full KD)", line={"color": "#1f2937", "width": 3})
    for index, (name, estimate) in enumerate(estimates.items()):
        figure.add_scatter(
            x=ranks,
            y=[mean.value for mean in estimate.ranks],
            error_y={"array": [mean.error for mean in estimate.ranks], "thickness": 1, "width": 2},
            name=name,
            mode="lines+markers",
            marker={"size": 4},
            line={"color": PALETTE[index % len(PALETTE)], "width": 1.5},
            visible=True if name in _SHOWN else "legendonly",
            hovertemplate="%{y:.4f} at rank %{x}",
        )
    figure.update_xaxes(title="rank of the token")
    figure.update_yaxes(title="probability", rangemode="tozero")
    return styled(figure, height=460, showlegend=True)
