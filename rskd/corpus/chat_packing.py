"""From conversations to windows: whole, best-fit-decreasing, the rest of a window filled with the separator.

    conversations of a group, in a seeded shuffle ─► pieces ─► windows of S+1 tokens
    window: [conversation, separator, conversation, separator, …, separator, separator]

After each conversation stands the separator, which no conversation has in it. So each is a document as in a text
corpus: it ends with that token, and what isolates documents there isolates conversations here. The rest of a window is
filled with separators: documents of one token, without loss. A window that is full needs none at its end.

A conversation longer than a window is cut into pieces of S+1 tokens at stride S; each is isolated, without what is
before it. Pieces share a token, whose loss is the earlier one's, so each token but the first is predicted once.

Best-fit-decreasing: the longest piece first, each into the fullest window that has room; O(n log n), within a few per
cent of the fewest windows. Windows then stand in the order in which the shuffle has the longest piece of each.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class MaskedTokens(NamedTuple):
    """A conversation's `ids` int32 [L], and its `loss_mask` uint8 [L]: 1 where the token has a loss."""

    ids: np.ndarray
    loss_mask: np.ndarray


class Piece(NamedTuple):
    """Tokens [start, end) of a conversation, which is named by its place in the shuffle."""

    conversation: int
    start: int
    end: int


class Counts(NamedTuple):
    """What the windows of a group hold; `padding_tokens` are the places of no conversation, separators included."""

    loss_tokens: int
    padding_tokens: int
    dropped_tail_tokens: int  # of conversations beyond max_windows
    cut_conversations: int  # longer than a window
    skipped_conversations: int  # without a token that has a loss


CHAT_TOTALS = ("loss_tokens", "padding_tokens", "cut_conversations", "skipped_conversations")


def fewest_windows(num_tokens: np.ndarray | int, seq_len: int) -> np.ndarray:
    """The fewest windows that conversations of so many tokens, separators included, can be packed in."""
    return -(-np.asarray(num_tokens) // (seq_len + 2))


def assign(lengths: Sequence[int] | np.ndarray, seq_len: int) -> list[list[Piece]]:
    """The pieces of each window: a pure function of the lengths of the conversations, in their shuffled order.

    A conversation of length 0 is in none.
    """
    pieces = [piece for index, length in enumerate(lengths) for piece in _pieces(index, int(length), seq_len)]
    pieces.sort(key=lambda piece: piece.start - piece.end)  # stable: equal ones in their order
    windows: list[list[Piece]] = []
    with_room: dict[int, list[int]] = {}  # windows by the places that are left, one more than there are for a separator
    rooms: list[int] = []  # the keys of it, ascending
    for piece in pieces:
        size = piece.end - piece.start + 1
        at = bisect_left(rooms, size)
        if at == len(rooms):
            room, window = seq_len + 2, len(windows)
            windows.append([])
        else:
            room = rooms[at]
            window = with_room[room].pop()
            if not with_room[room]:
                del with_room[room], rooms[at]
        windows[window].append(piece)
        room -= size
        if room not in with_room:
            with_room[room] = []
            insort(rooms, room)
        with_room[room].append(window)
    windows.sort(key=lambda pieces: pieces[0])  # the longest, which opened the window
    return [sorted(pieces) for pieces in windows]


def fill(
    windows: Sequence[Sequence[Piece]], conversations: Sequence[MaskedTokens], seq_len: int, separator_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """The windows' `input_ids` int32 and `loss_mask` uint8, [R, S+1] both."""
    shape = (len(windows), seq_len + 1)
    input_ids, loss_mask = np.full(shape, separator_id, np.int32), np.zeros(shape, np.uint8)
    for row, pieces in enumerate(windows):
        at = 0
        for index, start, end in pieces:
            ids, mask = conversations[index]
            after = at + end - start
            input_ids[row, at:after] = ids[start:end]
            loss_mask[row, at + 1 : after] = mask[start + 1 : end]  # nothing before it predicts the first
            at = after + 1
    return input_ids, loss_mask


def count(windows: Sequence[Sequence[Piece]], loss_mask: np.ndarray, lengths: Sequence[int]) -> Counts:
    """What `windows`, filled with conversations of these lengths, hold."""
    pieces = [piece for window in windows for piece in window]
    places = sum(piece.end - piece.start for piece in pieces)
    repeats = sum(piece.start > 0 for piece in pieces)  # the token that a piece shares with the one before it
    kept = {piece.conversation for piece in pieces}
    return Counts(
        loss_tokens=int(loss_mask.sum()),
        padding_tokens=loss_mask.size - places,
        dropped_tail_tokens=sum(lengths) - (places - repeats),
        cut_conversations=sum(lengths[index] > loss_mask.shape[1] for index in kept),
        skipped_conversations=sum(length == 0 for length in lengths),
    )


def _pieces(index: int, length: int, seq_len: int) -> list[Piece]:
    if length <= seq_len + 1:
        return [Piece(index, 0, length)] if length else []
    return [Piece(index, start, min(start + seq_len + 1, length)) for start in range(0, length - 1, seq_len)]
