"""Which columns hold the targets of a cache, and how.

    plain     num_unique, token_ids, and counts, weights or probs: entries as they were drawn
    compact   entries drawn more than once (num_repeated, repeated_gaps, counts), and those drawn once (num_single,
              single_gaps), which need no count; small numbers instead of ids: gaps between ranks by frequency

README.md beside this file describes the columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from rskd.teacher_statistics import StatisticName


class Entries(NamedTuple):
    """Names of the columns of some entries of each position."""

    lengths: str  # how many
    ids: str  # token ids or gaps
    values: str | None  # None: each is 1


MOST_FREQUENT = 1024  # ids that have ranks of their own: more of them save little, and their table costs as much
_COMPACT = (Entries("num_repeated", "repeated_gaps", "counts"), Entries("num_single", "single_gaps", None))


@dataclass(frozen=True)
class Layout:
    """How the targets of one sampling setting are stored."""

    entries: tuple[Entries, ...]
    value_type: Any  # numpy type of the values
    count_type: Any  # numpy type of the lengths
    rounds: int  # a weight is value / rounds
    statistics: tuple[StatisticName, ...]
    ranked: np.ndarray | None = None  # ids int32 [V] by rank, where gaps between ranks are stored
    masked: bool = False  # whether positions without entries have no loss; else all have entries

    @property
    def counts(self) -> bool:
        """Whether values are counts, which sum to `rounds`."""
        return self.entries[0].values == "counts"

    @classmethod
    def of(cls, head: Mapping[str, Any]) -> Layout:
        """Layout for the `sampling` and `tokenizer` of a head, and whether its `corpus` is masked."""
        sampling, masked = head["sampling"], head.get("corpus", {}).get("masked", False)
        method, rounds = sampling["method"], sampling["num_samples"]
        statistics = tuple(sampling["statistics"])
        if method in ("top_k", "top_p"):
            column, value_type, rounds, most = "probs", np.float16, 1, sampling["k"]
        elif method == "random" and sampling["temperature"] != 1:
            column, value_type, rounds, most = "weights", np.float32, 1, rounds
        else:
            column, value_type, most = "counts", _unsigned(rounds), rounds
        if sampling.get("layout") == "compact":
            ranked = ranked_ids(head["tokenizer"]["most_frequent"], head["tokenizer"]["vocab_size"])
            return cls(_COMPACT, value_type, _unsigned(most), rounds, statistics, ranked, masked)
        plain = (Entries("num_unique", "token_ids", column),)
        return cls(plain, value_type, _unsigned(most), rounds, statistics, masked=masked)


def most_frequent(input_ids: np.ndarray) -> list[int]:
    """The MOST_FREQUENT of these ids, falling; equally frequent ones in their own order."""
    frequency = np.bincount(input_ids.ravel())
    return np.argsort(-frequency, kind="stable")[: min(MOST_FREQUENT, np.count_nonzero(frequency))].tolist()


def ranked_ids(most_frequent: Sequence[int], vocab_size: int) -> np.ndarray:
    """Ids by rank, int32 [V]: the most frequent ones, then all others in their own order."""
    return np.concatenate([most_frequent, np.setdiff1d(np.arange(vocab_size), most_frequent)]).astype(np.int32)


def _unsigned(largest: int) -> Any:
    return np.uint8 if largest <= 255 else np.uint16
