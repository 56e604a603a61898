"""What was measured of a model on each held-out window, and the Parquet file that keeps it.

measure ─► WindowValues of each model, joined over batches ─► Parquet, a row per model and window ─► paired differences

    model string, window int64, lm_loss … kl_to_teacher double (means over the window's tokens; 0 where it has none),
    bin_count, bin_correct list<int64>, bin_confidence list<double> (sums over its tokens in each bin of the confidence)

Tokens are those that have a loss, and the sum of a window's bin_count. The bins are there because the ECE is no mean
over windows: it comes from the sums of the bins over all of them.

Shapes: W windows, M bins.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

METRICS = ("lm_loss", "ece", "top1_agreement", "acceptance", "kl_to_teacher")
MEANS = ("lm_loss", "top1_agreement", "acceptance", "kl_to_teacher")  # of METRICS those that are means over positions


@dataclass(frozen=True)
class WindowValues:
    """One model on W windows."""

    window: np.ndarray  # [W], the row id of each in the held-out corpus
    means: Mapping[str, np.ndarray]  # MEANS, each [W]
    count: np.ndarray  # [W, M], tokens whose confidence is in the bin
    confidence: np.ndarray  # [W, M], their summed confidence
    correct: np.ndarray  # [W, M], how many of them were predicted right

    @property
    def tokens(self) -> np.ndarray:
        """Of each window, those that have a loss, [W]."""
        return self.count.sum(1)

    @classmethod
    def joined(cls, parts: Sequence[WindowValues]) -> WindowValues:
        """One model on the windows of all parts, in their order."""
        fields = ("window", "count", "confidence", "correct")
        return cls(
            means={metric: np.concatenate([part.means[metric] for part in parts]) for metric in MEANS},
            **{name: np.concatenate([getattr(part, name) for part in parts]) for name in fields},
        )

    def metric(self, name: str) -> float:
        """One of METRICS over all windows, as `evaluation.json` has it."""
        tokens = self.tokens
        with np.errstate(divide="ignore", invalid="ignore"):  # nan without tokens
            if name == "ece":
                return float(np.abs((self.correct - self.confidence).sum(0)).sum() / tokens.sum())
            return float(self.means[name] @ tokens / tokens.sum())

    def unknown(self) -> WindowValues:
        """The same windows of a model of which nothing was measured: not a number."""
        nothing = {metric: np.full_like(values, np.nan) for metric, values in self.means.items()}
        return replace(self, means=nothing, confidence=np.full_like(self.confidence, np.nan))


def mean_over_tokens(means: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Mean over all tokens of the means [..., W] over the tokens [W] of each window, and its standard error.

        m = Σ n_w m_w / Σ n_w        error² = W/(W-1) · Σ n_w² (m_w - m)² / (Σ n_w)²

    The error is that of a ratio of sums, clustered by window (Cochran 1977, 6.4), over the W windows that have tokens:
    for windows of one size the standard deviation of their means by √W. None for a single window.
    """
    total, num_windows = tokens.sum(), np.count_nonzero(tokens)
    mean = means @ tokens / total
    if num_windows < 2:
        return mean, None
    residuals = tokens * (means - mean[..., None])
    return mean, np.sqrt(num_windows / (num_windows - 1) * (residuals**2).sum(-1)) / total


def to_parquet(models: Mapping[str, WindowValues]) -> bytes:
    """The file of these models; the same bytes for the same values."""
    return _bytes(pa.concat_tables([_table(name, values) for name, values in models.items()]))


def from_parquet(data: bytes) -> dict[str, WindowValues]:
    """The models of a file, in its order."""
    table = pq.read_table(io.BytesIO(data))
    names = np.array(table["model"].to_pylist())
    return {name: _values(table.filter(names == name)) for name in dict.fromkeys(names.tolist())}


def _table(name: str, values: WindowValues) -> pa.Table:
    return pa.table(
        {
            "model": [name] * len(values.window),
            "window": values.window,
            **{metric: values.means[metric] for metric in MEANS},
            "bin_count": list(values.count),
            "bin_confidence": list(values.confidence),
            "bin_correct": list(values.correct),
        }
    )


def _bytes(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _values(table: pa.Table) -> WindowValues:
    return WindowValues(
        window=table["window"].to_numpy(),
        means={metric: table[metric].to_numpy() for metric in MEANS},
        **{name: np.stack(table[f"bin_{name}"].to_pylist()) for name in ("count", "confidence", "correct")},
    )
