"""Every cache and every student that the paper compares, and systematic sampling beside them.

A method is an objective on the targets of a cache, for the student of a scale or for one of another size. Caches of
random and systematic samples are named after their mean number of unique tokens: the paper compares at equal unique
tokens, and the rounds that give them depend on the teacher.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

RATIOS, CE_WEIGHTS = (1.0, 1.5, 2.0), (0.3, 0.2, 0.1, 0.0)  # of Table 9
TEMPERATURES = (0.0, 0.8, 1.2)  # of Table 10, beside 1
DIVERGENCES = ("l1", "mse", "reverse", "forward_reverse")  # of Table 12, beside forward KL
OURS = "random-12"  # the paper's method, on which its ablations are made
MISALIGNED = "misaligned-12"  # its cache, each document in other company (Table 13)
SIZES = ("size-1", "size-2", "size-3")  # of students beside the one of a scale, rising (Figure 4)


@dataclass(frozen=True)
class Cache:
    """Settings of a `SamplingConfig`; num_samples is still to be chosen where `unique_tokens` is given."""

    sampling: Mapping[str, Any]
    unique_tokens: float | None = None


@dataclass(frozen=True)
class Method:
    """What a student learns from, and how: the name of a cache (None: it needs none), `ObjectiveConfig`, `TrainConfig`.

    `size` is one of SIZES; None for the student of the scale.
    """

    objective: Mapping[str, Any]
    cache: str | None = None
    train: Mapping[str, Any] = field(default_factory=dict)
    size: str | None = None


CACHES: dict[str, Cache] = {
    **{f"top_k-{k}": Cache({"method": "top_k", "k": k}) for k in (1, 3, 5, 10, 12, 20, 25, 50, 57, 100, 300)},
    "top_p": Cache({"method": "top_p", "k": 100, "p": 0.98}),
    **{f"random-{unique:g}": Cache({"method": "random"}, unique) for unique in (2.4, 5, 24.5, 57)},
    OURS: Cache({"method": "random", "statistics": ["label_logprob"]}, 12),
    **{f"systematic-{unique:g}": Cache({"method": "systematic"}, unique) for unique in (2.4, 5, 12, 24.5)},
    **{f"proposal-{t:g}": Cache({"method": "random", "temperature": t}, 57) for t in TEMPERATURES},
}

METHODS: dict[str, Method] = {
    "ce": Method({"kind": "ce"}),
    "full_kd": Method({"kind": "full_kd"}),
    **{name: Method({}, name) for name in CACHES if name not in ("top_k-1", "top_k-10", "top_k-20")},
    **{f"{residual}-50": Method({"residual": residual}, "top_k-50") for residual in ("smooth", "ghost")},
    **{f"label-{k}": Method({"residual": "label"}, f"top_k-{k}") for k in (1, 5, 10, 20, 50, 100)},
    **{
        f"ratio-{ratio:g}-ce-{ce:g}": Method({"hard_easy_ratio": ratio, "ce_weight": ce}, OURS)
        for ratio, ce in product(RATIOS, CE_WEIGHTS)
        if (ratio, ce) != (1.0, 0.0)
    },
    **{f"divergence-{divergence}": Method({"divergence": divergence}, OURS) for divergence in DIVERGENCES},
    **{f"full_kd-{divergence}": Method({"kind": "full_kd", "divergence": divergence}) for divergence in DIVERGENCES},
    MISALIGNED: Method({}, MISALIGNED, {"allow_misaligned": True}),
    **{f"ce-{size}": Method({"kind": "ce"}, size=size) for size in SIZES},
    **{f"{OURS}-{size}": Method({}, OURS, size=size) for size in SIZES},
}
