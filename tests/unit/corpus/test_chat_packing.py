import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rskd.corpus.chat_packing import MaskedTokens, Piece, assign, count, fewest_windows, fill

SEPARATOR = 0
lengths_of_conversations = st.lists(st.integers(0, 40), max_size=30)


def made(lengths: list[int]) -> list[MaskedTokens]:
    """Conversations of different ids, of which every other token has a loss, the first never."""
    ids = np.split(np.arange(1, sum(lengths) + 1, dtype=np.int32), np.cumsum(lengths)[:-1]) if lengths else []
    return [MaskedTokens(one, (np.arange(len(one)) % 2).astype(np.uint8)) for one in ids]


@given(lengths=lengths_of_conversations, seq_len=st.integers(2, 20))
def test_conversations_are_whole_or_cut_where_longer_than_a_window(lengths: list[int], seq_len: int):
    conversations = made(lengths)
    windows = assign(lengths, seq_len)
    input_ids, loss_mask = fill(windows, conversations, seq_len, SEPARATOR)
    assert input_ids.shape == loss_mask.shape == (len(windows), seq_len + 1)
    found = []
    for ids, mask in zip(input_ids, loss_mask):
        assert not mask[0]
        assert not mask[ids == SEPARATOR].any()
        pieces = np.split(ids, np.flatnonzero(ids == SEPARATOR) + 1)
        found += [piece[piece != SEPARATOR].tolist() for piece in pieces if (piece != SEPARATOR).any()]
    wanted = []
    for ids, _ in conversations:
        starts = range(0, len(ids) - 1, seq_len) if len(ids) > seq_len + 1 else range(0, len(ids), seq_len + 1)
        wanted += [ids[start : start + seq_len + 1].tolist() for start in starts]
    assert sorted(found) == sorted(wanted)
    learned = sorted(input_ids[loss_mask == 1].tolist())
    assert learned == sorted(token for ids, mask in conversations for token in ids[mask == 1].tolist())


@given(lengths=lengths_of_conversations, seq_len=st.integers(2, 20), kept=st.integers(0, 5))
def test_what_windows_hold_adds_up(lengths: list[int], seq_len: int, kept: int):
    windows = assign(lengths, seq_len)
    assert len(windows) >= fewest_windows(sum(length + 1 for length in lengths if length), seq_len)
    conversations = made(lengths)
    input_ids, loss_mask = fill(windows, conversations, seq_len, SEPARATOR)
    counts = count(windows, loss_mask, lengths)
    assert counts.loss_tokens == sum(int(mask.sum()) for _, mask in conversations)
    assert counts.padding_tokens == (input_ids == SEPARATOR).sum()
    assert counts.dropped_tail_tokens == 0
    assert counts.cut_conversations == sum(length > seq_len + 1 for length in lengths)
    assert counts.skipped_conversations == lengths.count(0)
    first = windows[:kept]
    partial = count(first, loss_mask[:kept], lengths)
    assert partial.loss_tokens == loss_mask[:kept].sum()
    assert partial.padding_tokens == (input_ids[:kept] == SEPARATOR).sum()
    assert 0 <= partial.dropped_tail_tokens <= sum(lengths)


def test_the_fullest_window_with_room_is_taken():
    # Windows of 10 places: 9 leaves 1, too few for a separator and a token; 6 leaves 4, of which 3 take all but the
    # separator; 5 and 4 fill a window.
    assert assign([4, 3, 9, 5, 6], 9) == [
        [Piece(2, 0, 9)],
        [Piece(0, 0, 4), Piece(3, 0, 5)],
        [Piece(1, 0, 3), Piece(4, 0, 6)],
    ]
    assert assign([10, 11], 9) == [[Piece(0, 0, 10)], [Piece(1, 0, 10)], [Piece(1, 9, 11)]]


def test_little_is_padding():
    lengths = np.random.default_rng(0).integers(20, 600, 3000)
    windows = assign(lengths, 1023)
    assert len(windows) <= 1.01 * fewest_windows(int(lengths.sum()) + len(lengths), 1023)
    assert windows == assign(lengths, 1023)


@pytest.mark.parametrize("order", [1, -1])
def test_windows_are_not_ordered_by_length(order: int):
    lengths = np.tile([700, 300], 200)[::order]
    longest = [max(piece.end for piece in window) for window in assign(lengths, 1023)]
    assert longest == [700] * 200
    firsts = [window[0].conversation for window in assign(np.arange(1, 101) * 9 + 100, 1023)]
    assert len({*firsts[:10]} & {*range(90, 100)}) < 10
