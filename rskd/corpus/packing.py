"""From documents to windows: pure functions of the documents' token ids.

    documents of a group ─► seeded shuffle ─► split by content hash ─► joined, each ended ─► windows of S+1 at stride S

Consecutive windows share a token, so that every token but the first is predicted once.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from tokenizers import Tokenizer

from rskd.errors import ConfigError
from rskd.rng import permutation

_BATCH = 256  # documents given to the tokenizer at once


def content_hash(text: str) -> int:
    """The first 8 bytes of the sha256 of a document: uniform in [0, 2^64), equal for equal documents."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def tokenize(tokenizer: Tokenizer, texts: Iterable[str], end_of_text_id: int) -> Iterator[np.ndarray]:
    """The ids of each document, int32, with the end-of-text token at its end and nothing at its beginning.

    What looks like a special token in a document is text: no document can end itself, or open a chat turn.
    """
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    remaining = iter(texts)
    while batch := list(islice(remaining, _BATCH)):
        for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
            yield np.array([*encoding.ids, end_of_text_id], np.int32)


@dataclass(frozen=True)
class DocumentCounts:
    """The documents of one group: content hash (uint64) and number of tokens (int64) of each."""

    hashes: np.ndarray
    num_tokens: np.ndarray


@dataclass(frozen=True, slots=True)
class Share:
    """What one group gives to one split."""

    documents: int
    tokens: int  # end-of-text tokens included
    windows: int
    dropped_tail_tokens: int  # those after the last window


def split_masks(hashes: np.ndarray, threshold: int) -> dict[str, np.ndarray]:
    """Which documents of a group belong to each split: those whose hash is below `threshold` are held out."""
    held_out = hashes < threshold
    return {"train": ~held_out, "eval": held_out}


def split_shares(counts: DocumentCounts, threshold: int, seq_len: int) -> dict[str, Share]:
    """The group's share of each split."""
    masks = split_masks(counts.hashes, threshold)
    return {split: _share(counts.num_tokens[mask], seq_len) for split, mask in masks.items()}


def _share(num_tokens: np.ndarray, seq_len: int) -> Share:
    tokens = int(num_tokens.sum())
    windows = int(num_windows(tokens, seq_len))
    return Share(len(num_tokens), tokens, windows, tokens - _used_tokens(windows, seq_len))


def limited(share: Share, max_windows: int, seq_len: int) -> Share:
    """The share if it may have `max_windows` at most: the tokens beyond them are dropped."""
    windows = min(share.windows, max_windows)
    return replace(share, windows=windows, dropped_tail_tokens=share.tokens - _used_tokens(windows, seq_len))


def _used_tokens(windows: int, seq_len: int) -> int:
    return windows * seq_len + 1 if windows else 0


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


def num_windows(num_tokens: np.ndarray | int, seq_len: int) -> np.ndarray:
    """How many windows a stream of this many tokens is cut into."""
    return np.maximum(num_tokens - 1, 0) // seq_len


def cut_windows(documents: Sequence[np.ndarray], seq_len: int) -> np.ndarray:
    """Windows int32 [W, S+1] of `documents` joined in their order; the tail that fills no window is dropped."""
    stream = np.concatenate([np.empty(0, np.int32), *documents])
    count = int(num_windows(len(stream), seq_len))
    if count == 0:
        return np.empty((0, seq_len + 1), np.int32)
    return np.lib.stride_tricks.sliding_window_view(stream, seq_len + 1)[::seq_len][:count]


def shuffled(num_documents: int, *, seed: int, group: int) -> np.ndarray:
    """The order, int64, in which the documents of a group are joined."""
    return permutation(num_documents, seed=seed, stream=group).numpy()
