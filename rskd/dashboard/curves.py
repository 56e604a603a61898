"""A training log of any length as a curve of a few points."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
from pyarrow.json import ParseOptions, read_json

_MOST_POINTS = 120
_FIELDS = pa.schema([(name, pa.float64()) for name in ("tokens", "loss", "tokens_per_s")])
_READ = ParseOptions(explicit_schema=_FIELDS, unexpected_field_behavior="ignore")


def learning_curve(log: bytes) -> dict[str, list[float | None]]:
    """Mean loss (nats/token) of equal stretches of a student's log, with the tokens and seconds at their ends.

    The seconds are those of the steps themselves: what was lost in a stopped run is not in the log.
    """
    steps = read_json(io.BytesIO(log), parse_options=_READ)
    tokens, loss, speed = (steps[name].to_numpy() for name in _FIELDS.names)
    seconds = np.cumsum(np.diff(tokens, prepend=0.0) / speed)
    starts = np.linspace(0, len(loss), min(_MOST_POINTS, len(loss)), endpoint=False).astype(int)
    ends = np.append(starts[1:], len(loss))
    return {
        "tokens": tokens[ends - 1].tolist(),
        "seconds": rounded(seconds[ends - 1]),
        "loss": rounded(np.add.reduceat(loss, starts) / (ends - starts)),
    }


def rounded(values: np.ndarray) -> list[float | None]:
    """Five digits of each, which is what a picture shows; None for what is no number."""
    return [float(f"{value:.5g}") if np.isfinite(value) else None for value in values.tolist()]
