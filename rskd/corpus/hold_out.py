"""Which documents are held out for evaluation: those whose content hash is below a threshold.

    hashes and lengths of all documents ─► choose_hold_out (first pack alone) ─► HoldOut ─► split_masks (every pack)

A document is held out whatever the file, the order or the pack that it comes with, and equal documents go together.
The threshold is the smallest that gives `eval_windows`. Where that takes more than half of all windows, since a long
document happens to have a small hash, the hashes are multiplied by an odd number (modulo 2^64, so they stay uniform and
distinct), the first of a fixed sequence under which the hold-out is the smaller part; the number is in the manifest.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rskd.corpus.chat_packing import assign
from rskd.corpus.packing import DocumentCounts, Share, num_windows, share
from rskd.errors import ConfigError

_MULTIPLIERS = [pow(6364136223846793005, power, 2**64) for power in range(64)]  # the first is 1


@dataclass(frozen=True, slots=True)
class HoldOut:
    """A document is held out if its content hash times `multiplier`, modulo 2^64, is below `threshold`."""

    threshold: int
    multiplier: int = 1

    def places(self, hashes: np.ndarray) -> np.ndarray:
        """What is compared with the threshold, uint64."""
        return hashes * np.uint64(self.multiplier)


def content_hash(text: str) -> int:
    """The first 8 bytes of the sha256 of a document: uniform in [0, 2^64), equal for equal documents."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def split_masks(hashes: np.ndarray, hold_out: HoldOut) -> dict[str, np.ndarray]:
    """Which documents of a group belong to each split."""
    held_out = hold_out.places(hashes) < hold_out.threshold
    return {"train": ~held_out, "eval": held_out}


def split_shares(
    counts: DocumentCounts, is_copy: np.ndarray, hold_out: HoldOut, seq_len: int, carried: dict[str, int]
) -> dict[str, Share]:
    """The group's share of each split, whose stream begins with so many `carried` tokens."""
    masks = split_masks(counts.hashes, hold_out)
    return {
        split: share(counts.num_tokens[mask], seq_len, duplicates=int(is_copy[mask].sum()), carried=carried[split])
        for split, mask in masks.items()
    }


def chat_shares(
    counts: DocumentCounts, is_copy: np.ndarray, hold_out: HoldOut, seq_len: int, order: np.ndarray
) -> dict[str, Share]:
    """The group's share of each split, of conversations in their shuffled `order`; those without a token are skipped.

    What its windows hold, and what is dropped, is counted as they are written (`rskd.corpus.chat_packing.count`).
    """
    shares = {}
    for split, mask in split_masks(counts.hashes, hold_out).items():
        is_kept = mask & (counts.num_tokens > 0)
        windows = len(assign(counts.num_tokens[order[mask[order]]], seq_len))
        tokens, copies = int(counts.num_tokens[mask].sum()), int(is_copy[is_kept].sum())
        shares[split] = Share(int(is_kept.sum()), copies, tokens, windows, 0)
    return shares


def choose_hold_out(
    groups: Sequence[DocumentCounts],
    *,
    seq_len: int,
    eval_windows: int,
    num_windows: Callable[[np.ndarray, int], np.ndarray] = num_windows,
) -> HoldOut:
    """The rule with the smallest threshold that gives `eval_windows` windows, as `num_windows` counts them.

    The hold-out is the smaller part, or else at most twice what was asked for, and leaves a window to train on. Raises
    ConfigError, which says how many documents there are, if none of the sequence of multipliers gives such a rule.
    """
    hashes = np.concatenate([group.hashes for group in groups])
    num_tokens = np.concatenate([group.num_tokens for group in groups])
    group_of = np.repeat(np.arange(len(groups)), [len(group.hashes) for group in groups])

    def windows_of(documents: np.ndarray) -> int:
        tokens = np.bincount(group_of[documents], num_tokens[documents], minlength=len(groups))
        return int(num_windows(tokens.astype(np.int64), seq_len).sum())

    total = windows_of(np.arange(len(hashes)))
    _check_enough(hashes, total, seq_len=seq_len, eval_windows=eval_windows)
    if eval_windows == 0:
        return HoldOut(0)
    usual = _smallest(hashes, 1, windows_of, eval_windows)
    if _is_smaller_part(usual):
        return usual.rule
    tried = [_smallest(hashes, multiplier, windows_of, eval_windows) for multiplier in _MULTIPLIERS]
    fitting = [one for one in tried if _is_smaller_part(one)] or [
        one for one in tried if one.left and one.held_out <= 2 * eval_windows
    ]
    if not fitting:
        least = min(one.held_out for one in tried)
        raise ConfigError(
            f"the corpus source has {len(np.unique(hashes)):,} documents, each held out or trained on whole: "
            f"corpus.eval_windows={eval_windows} would hold out {least:,} of {total:,} windows: split long documents, "
            "add some, or lower corpus.eval_windows"
        )
    return fitting[0].rule


@dataclass(frozen=True, slots=True)
class _Candidate:
    rule: HoldOut
    held_out: int  # windows
    left: int  # windows to train on


def _is_smaller_part(candidate: _Candidate) -> bool:
    return candidate.left > 0 and candidate.held_out <= candidate.left


def _smallest(
    hashes: np.ndarray, multiplier: int, windows_of: Callable[[np.ndarray], int], eval_windows: int
) -> _Candidate:
    """The smallest threshold under this multiplier that gives `eval_windows`, which all documents do."""
    places = HoldOut(0, multiplier).places(hashes)
    order = np.argsort(places, kind="stable")
    # More documents never give fewer windows, so bisection finds how many it takes.
    count = bisect_left(range(len(order) + 1), eval_windows, key=lambda count: windows_of(order[:count]))
    last = places[order[count - 1]]
    count = int(np.searchsorted(places[order], last, side="right"))  # with the copies of the last one
    return _Candidate(HoldOut(int(last) + 1, multiplier), windows_of(order[:count]), windows_of(order[count:]))


def _check_enough(hashes: np.ndarray, total: int, *, seq_len: int, eval_windows: int) -> None:
    """ConfigError if there are too few documents or windows, whatever is held out."""
    documents, distinct = len(hashes), len(np.unique(hashes))
    if not documents:
        raise ConfigError("the corpus source has no documents: every file or row of it is empty, so name another")
    copies = f" ({documents:,} copies of it)" if documents > distinct else ""
    if distinct == 1 and eval_windows:
        raise ConfigError(
            f"the corpus source has 1 document{copies}, which cannot be both held out and trained on: add documents, "
            "split it, or set corpus.eval_windows=0"
        )
    if total <= eval_windows:
        has = "1 document" if documents == 1 else f"{documents:,} documents"
        raise ConfigError(
            f"the corpus source has {has}, which give {total:,} windows of corpus.seq_len={seq_len}, too few for "
            f"corpus.eval_windows={eval_windows} and one to train on: lower them, or add documents"
        )
