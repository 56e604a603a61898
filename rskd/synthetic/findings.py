"""What a study is asked for, and what it found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rskd.errors import ConfigError
from rskd.synthetic.mean import Mean
from rskd.synthetic.zipf import Estimate


@dataclass(frozen=True)
class Settings:
    """What a study is run with."""

    seeds: int = 3  # runs of each classification task, at least 2
    steps: int = 500  # of each model
    rounds: int = 1000  # of each method on the Zipf distribution, an even number
    cifar100: Path | None = None  # folder of the binary version; scikit-learn's digits without it

    def __post_init__(self) -> None:
        for name, least, why in (
            ("seeds", 2, "a standard error needs two runs"),
            ("steps", 100, "fewer teach nothing"),
            ("rounds", 4, "a standard error needs two pairs"),
        ):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least {least}: {why}")
        if self.rounds % 2:
            raise ConfigError(f"rounds={self.rounds} must be even, since rounds are compared in pairs: take one more")


@dataclass(frozen=True)
class Calibration:
    """What the models of one method came to, over the seeds."""

    accuracy: Mean
    ece: Mean
    ece_above_full_kd: Mean  # paired by seed
    overconfidence: Mean  # mean confidence - accuracy
    loss: Mean  # nats
    unique_tokens: float | None
    reliability: dict[str, list[Any]]  # of all seeds together


@dataclass(frozen=True)
class Findings:
    """All that the page shows."""

    settings: Settings
    zipf_probabilities: list[float]  # of the first ranks
    zipf: dict[str, Estimate]
    calibration: dict[str, dict[str, Calibration]]  # by task and method
