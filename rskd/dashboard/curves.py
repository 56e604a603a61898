"""A training log of any length as a curve of a few points."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

_MOST_POINTS = 120


def learning_curve(log: bytes) -> dict[str, list[float | None]]:
    """Mean loss (nats/token) of equal stretches of a student's log, with the tokens and seconds at their ends.

    The seconds are those of the steps themselves: what was lost in a stopped run is not in the log.
    """
    steps: list[dict[str, Any]] = [json.loads(line) for line in log.splitlines()]
    tokens = np.array([step["tokens"] for step in steps], np.float64)
    loss = np.array([step["loss"] for step in steps], np.float64)
    speed = np.array([step["tokens_per_s"] for step in steps], np.float64)
    seconds = np.cumsum(np.diff(tokens, prepend=0.0) / speed).tolist()
    pieces = [piece for piece in np.array_split(np.arange(len(steps)), _MOST_POINTS) if len(piece)]
    return {
        "tokens": [float(tokens[piece[-1]]) for piece in pieces],
        "seconds": [rounded(seconds[piece[-1]]) for piece in pieces],
        "loss": [rounded(float(loss[piece].mean())) for piece in pieces],
    }


def rounded(value: float) -> float | None:
    """Five digits, which is what a picture shows; None for what is no number."""
    return float(f"{value:.5g}") if np.isfinite(value) else None
