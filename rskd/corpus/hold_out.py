"""Which documents are held out for evaluation: those whose content hash is below a threshold.

    hashes and lengths of all documents ─► hold_out_threshold (first pack alone) ─► split_masks (every pack)

A document is held out whatever the file, the order or the pack that it comes with, and equal documents go together.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from rskd.corpus.packing import DocumentCounts, Share, num_windows, share
from rskd.errors import ConfigError


def content_hash(text: str) -> int:
    """The first 8 bytes of the sha256 of a document: uniform in [0, 2^64), equal for equal documents."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def split_masks(hashes: np.ndarray, threshold: int) -> dict[str, np.ndarray]:
    """Which documents of a group belong to each split: those whose hash is below `threshold` are held out."""
    held_out = hashes < threshold
    return {"train": ~held_out, "eval": held_out}


def split_shares(counts: DocumentCounts, threshold: int, seq_len: int) -> dict[str, Share]:
    """The group's share of each split."""
    masks = split_masks(counts.hashes, threshold)
    return {split: share(counts.num_tokens[mask], seq_len) for split, mask in masks.items()}


def hold_out_threshold(groups: Sequence[DocumentCounts], *, seq_len: int, eval_windows: int) -> int:
    """The smallest t such that the documents whose hash is below t give `eval_windows` windows.

    Raises ConfigError if the documents do not give that many and a window to train on.
    """
    hashes = np.concatenate([group.hashes for group in groups])
    num_tokens = np.concatenate([group.num_tokens for group in groups])
    group_of = np.repeat(np.arange(len(groups)), [len(group.hashes) for group in groups])
    order = np.argsort(hashes, kind="stable")

    def windows_of(documents: np.ndarray) -> int:
        tokens = np.bincount(group_of[documents], num_tokens[documents], minlength=len(groups))
        return int(num_windows(tokens.astype(np.int64), seq_len).sum())

    # More documents never give fewer windows, so bisection finds how many it takes.
    count = bisect_left(range(len(order) + 1), eval_windows, key=lambda count: windows_of(order[:count]))
    if count > len(order) or not windows_of(order[count:]):
        raise ConfigError(
            f"the corpus source gives {windows_of(order)} windows of corpus.seq_len={seq_len}, too few for "
            f"corpus.eval_windows={eval_windows} and one to train on: lower them, or add documents"
        )
    return int(hashes[order[count - 1]]) + 1 if count else 0
