"""How many distinct tokens a number of sampling rounds gives, and its power law (paper, Appendix C, Figure 5).

    teacher logits ─► expected unique tokens, exactly ─► mean over positions, by rounds ─► U = c·N^e

Nothing is drawn: an id of probability p is among N random draws with probability 1 - (1 - p)^N, and among N systematic
ones with min(1, N·p), for they lie 1/N apart.

Shapes: ... any leading shape, B windows, T positions, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rskd.evaluation.window_values import mean_over_tokens

METHODS = ("random", "systematic")
ROUNDS = (4, 8, 16, 32, 64, 128, 256)
_ENTRIES = 2**24  # probabilities in work at once: 64 MiB in float32


@dataclass(frozen=True)
class PowerLaw:
    """Unique tokens U = coefficient · N^exponent of N rounds."""

    coefficient: float
    exponent: float

    @classmethod
    def fit(cls, rounds: Sequence[float], unique_tokens: Sequence[float]) -> PowerLaw:
        """Least squares on logarithmic axes."""
        exponent, intercept = np.polyfit(np.log(rounds), np.log(unique_tokens), 1)
        return cls(math.exp(intercept), float(exponent))

    def unique_tokens(self, rounds: float) -> float:
        return self.coefficient * rounds**self.exponent

    def rounds(self, unique_tokens: float) -> float:
        """How many rounds give as many unique tokens."""
        return (unique_tokens / self.coefficient) ** (1 / self.exponent)


@dataclass(frozen=True)
class UniqueTokens:
    """Mean unique tokens of one method by rounds, with standard errors clustered by window."""

    rounds: tuple[int, ...]
    means: tuple[float, ...]
    standard_errors: tuple[float, ...]

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> UniqueTokens:
        """Inverse of `to_dict`."""
        return cls(**{name: tuple(record[name]) for name in ("rounds", "means", "standard_errors")})

    def to_dict(self) -> dict[str, Any]:
        """As a record keeps it, with the law."""
        return asdict(self) | {"law": asdict(self.law)}

    @property
    def law(self) -> PowerLaw:
        """The power law through the means."""
        return PowerLaw.fit(self.rounds, self.means)

    @property
    def largest_error(self) -> float:
        """Of the law at any of the rounds, relative."""
        law = self.law
        return max(abs(law.unique_tokens(n) / mean - 1) for n, mean in zip(self.rounds, self.means, strict=True))

    @property
    def described_law(self) -> str:
        """The law in words, with how far off it is."""
        fit = f"{self.law.coefficient:.3f}·N^{self.law.exponent:.3f}"
        return f"{fit}, off by at most {self.largest_error:.1%} from {self.rounds[0]} to {self.rounds[-1]} rounds"


def expected_unique_tokens(logits: Tensor, rounds: int, *, method: str, temperature: float = 1.0) -> Tensor:
    """Mean number of distinct ids, [...], among `rounds` draws from the distribution of `logits` [..., V].

    float32, or float64 where the logits are. For random sampling draws come from q ∝ p^temperature. Ids at -inf are
    never drawn.
    """
    if method not in METHODS or (method == "systematic" and temperature != 1):
        raise ValueError(f"method must be random, or systematic at temperature 1, got {method} at {temperature}")
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    p = torch.where(logits == -torch.inf, logits, temperature * logits).softmax(-1)
    if method == "systematic":
        return (rounds * p).clamp(max=1).sum(-1)
    return -torch.expm1(rounds * torch.log1p(-p)).sum(-1)


@torch.inference_mode()
def rounds_against_unique_tokens(
    logit_batches: Iterable[Tensor], rounds: Sequence[int] = ROUNDS
) -> dict[str, UniqueTokens]:
    """Figure 5 from a teacher's logits [B, T, V] of some batches of windows, for random and systematic sampling.

    Batches may differ in T: a window weighs by its positions.
    """
    window_means: dict[str, list[Tensor]] = {method: [] for method in METHODS}
    positions: list[int] = []
    for window in (window for logits in logit_batches for window in logits if len(window)):
        positions.append(len(window))
        for method in METHODS:
            window_means[method].append(torch.stack([_window_mean(window, n, method) for n in rounds]))
    return {method: _summary(rounds, torch.stack(means), positions) for method, means in window_means.items()}


def _window_mean(logits: Tensor, rounds: int, method: str) -> Tensor:
    """Mean over the positions of a window, logits [T, V], of which some at a time."""
    chunks = logits.split(max(1, _ENTRIES // logits.shape[-1]))
    unique = torch.cat([expected_unique_tokens(chunk, rounds, method=method) for chunk in chunks])
    return unique.double().mean().cpu()


def _summary(rounds: Sequence[int], window_means: Tensor, positions: Sequence[int]) -> UniqueTokens:
    mean, error = mean_over_tokens(window_means.T.numpy(), np.asarray(positions))
    errors = mean * 0 if error is None else error
    return UniqueTokens(tuple(rounds), tuple(mean.tolist()), tuple(errors.tolist()))
