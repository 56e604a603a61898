"""From documents to windows: pure functions of the documents' token ids.

    documents of a group ─► seeded shuffle ─► split by content hash ─► joined, each ended ─► windows of S+1 at stride S

Consecutive windows share a token, so that every token but the first is predicted once. A BOS at the start of each
window takes the place of the token that it shares with the one before, which has predicted it: nothing else moves.
The tail of a split that fills no window is carried to the group that the next pack begins with; groups that are packed
at once, side by side, drop theirs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from tokenizers import Tokenizer

from rskd.corpus.long_documents import PIECE, LongDocuments
from rskd.rng import permutation

_BATCH = 256  # documents given to the tokenizer at once, of PIECE characters together


def tokenize(
    tokenizer: Tokenizer, texts: Iterable[str], end_of_text_id: int, bos_ids: Sequence[int] = ()
) -> Iterator[np.ndarray]:
    """The ids of each document, int32, with `bos_ids` at its beginning and the end-of-text token at its end.

    What looks like a special token in a document is text: no document can end itself, or open a chat turn.
    """
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    long_documents = LongDocuments(tokenizer)
    begin, end = np.array(bos_ids, np.int32), np.array([end_of_text_id], np.int32)
    for batch in _batches(texts):
        if len(batch[0]) > PIECE:
            yield np.concatenate([begin, long_documents.encode(batch[0]), end])
            continue
        for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
            yield np.concatenate([begin, np.array(encoding.ids, np.int32), end])


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """The texts in their order, PIECE characters at a time at most; a longer one is alone."""
    batch, size = [], 0
    for text in texts:
        if batch and (len(batch) == _BATCH or size + len(text) > PIECE):
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += len(text)
    if batch:
        yield batch


@dataclass(frozen=True)
class DocumentCounts:
    """The documents of one group: content hash (uint64) and number of tokens (int64) of each."""

    hashes: np.ndarray
    num_tokens: np.ndarray


def repeated(groups: Sequence[DocumentCounts]) -> list[np.ndarray]:
    """For each group, which of its documents (bool) are copies of one before them, in this group or an earlier one."""
    hashes = np.concatenate([np.empty(0, np.uint64), *(group.hashes for group in groups)])
    is_copy = np.ones(len(hashes), bool)
    is_copy[np.unique(hashes, return_index=True)[1]] = False
    return np.split(is_copy, np.cumsum([len(group.hashes) for group in groups])[:-1])


@dataclass(frozen=True, slots=True)
class Share:
    """What one group gives to one split."""

    documents: int
    duplicate_documents: int  # copies of other documents that were packed with them
    tokens: int  # end-of-text tokens included
    windows: int
    dropped_tail_tokens: int  # those in no window; negative where windows took up the tail of the group before


def share(num_tokens: np.ndarray, seq_len: int, *, duplicates: int = 0, carried: int = 0) -> Share:
    """The share of documents of so many tokens, after `carried` tokens of the group before."""
    tokens = int(num_tokens.sum())
    windows = int(num_windows(carried + tokens, seq_len))
    return Share(len(num_tokens), duplicates, tokens, windows, tokens - _used_tokens(windows, seq_len))


def limited(share: Share, max_windows: int, seq_len: int) -> Share:
    """The share if it may have `max_windows` at most: the tokens beyond them are dropped."""
    windows = min(share.windows, max_windows)
    return replace(share, windows=windows, dropped_tail_tokens=share.tokens - _used_tokens(windows, seq_len))


def _used_tokens(windows: int, seq_len: int) -> int:
    return windows * seq_len + 1 if windows else 0


def num_windows(num_tokens: np.ndarray | int, seq_len: int) -> np.ndarray:
    """How many windows a stream of this many tokens is cut into."""
    return np.maximum(num_tokens - 1, 0) // seq_len


def cut_windows(documents: Sequence[np.ndarray], seq_len: int, *, first_id: int | None = None) -> np.ndarray:
    """Windows int32 [W, S+1] of `documents` joined in their order, without the tail that fills no window.

    `first_id` replaces the first token of each window.
    """
    stream = np.concatenate([np.empty(0, np.int32), *documents])
    count = int(num_windows(len(stream), seq_len))
    if count == 0:
        return np.empty((0, seq_len + 1), np.int32)
    windows = np.lib.stride_tricks.sliding_window_view(stream, seq_len + 1)[::seq_len][:count]
    if first_id is not None:
        windows = windows.copy()
        windows[:, 0] = first_id
    return windows


def tail_of(documents: Sequence[np.ndarray], windows: int, seq_len: int) -> np.ndarray:
    """The tokens, int32, after the windows, with which a later pack begins; none where more windows were not wanted."""
    length = sum(map(len, documents)) - _used_tokens(windows, seq_len)
    tail = np.empty(0, np.int32)
    if length > seq_len:
        return tail
    for document in reversed(documents):
        if len(tail) >= length:
            break
        tail = np.concatenate([document[-length:], tail])
    return tail[len(tail) - length :]


def shuffled(num_documents: int, *, seed: int, group: int) -> np.ndarray:
    """The order, int64, in which the documents of a group are joined."""
    return permutation(num_documents, seed=seed, stream=group).numpy()
