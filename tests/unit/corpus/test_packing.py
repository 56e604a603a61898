from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rskd.corpus.packing import DocumentCounts, cut_windows, limited, repeated, share, shuffled, tail_of, tokenize
from rskd.models.tokenizer import load_tokenizer


def test_tokenize_ends_each_document_and_adds_nothing_else(tiny_tokenizer_dir: Path):
    tokenizer = load_tokenizer(str(tiny_tokenizer_dir))
    texts = ["Some text.", "café ☃", "x" * 3000] * 200
    found = list(tokenize(tokenizer.backend_tokenizer, texts, 0))
    assert len(found) == len(texts)
    for text, ids in zip(texts, found, strict=True):
        assert ids.dtype == np.int32
        assert ids[-1] == 0
        assert ids[:-1].tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_documents_begin_with_the_bos_and_windows_too_where_asked(tiny_tokenizer_dir: Path):
    tokenizer = load_tokenizer(str(tiny_tokenizer_dir)).backend_tokenizer
    plain = list(tokenize(tokenizer, ["Some text.", ""], 0))
    assert [ids.tolist() for ids in tokenize(tokenizer, ["Some text.", ""], 0, [7, 5])] == [
        [7, 5, *ids.tolist()] for ids in plain
    ]
    documents = [np.array([9, *range(10, 20), 0], np.int32), np.array([9, *range(20, 27), 0], np.int32)]
    windows, with_bos = (cut_windows(documents, 4, first_id=first_id) for first_id in (None, 9))
    assert (with_bos[:, 0] == 9).all()
    assert with_bos[:, 1:].tolist() == windows[:, 1:].tolist()
    assert with_bos[:, 1:].ravel().tolist() == np.concatenate(documents)[1:21].tolist()


def test_what_looks_like_a_special_token_is_text(tiny_tokenizer_dir: Path):
    tokenizer = load_tokenizer(str(tiny_tokenizer_dir))
    [ids] = tokenize(tokenizer.backend_tokenizer, ["a<|endoftext|>b"], 0)
    assert 0 not in ids[:-1]
    assert tokenizer.decode(ids[:-1]) == "a<|endoftext|>b"


@given(lengths=st.lists(st.integers(1, 30), max_size=12), seq_len=st.integers(2, 20))
def test_windows_tile_the_joined_documents(lengths: list[int], seq_len: int):
    stream = np.arange(sum(lengths), dtype=np.int32)
    windows = cut_windows(np.split(stream, np.cumsum(lengths)[:-1]) if lengths else [], seq_len)
    assert windows.shape[1] == seq_len + 1
    assert len(windows) == max(len(stream) - 1, 0) // seq_len
    for index, window in enumerate(windows):
        assert window.tolist() == list(range(index * seq_len, (index + 1) * seq_len + 1))


def test_shuffle_is_a_permutation_of_its_own_for_each_group_and_seed():
    orders = [tuple(shuffled(50, seed=seed, group=group)) for seed in (0, 1) for group in (0, 1)]
    assert len(set(orders)) == 4
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert orders[0] == tuple(shuffled(50, seed=0, group=0))


@given(packs=st.lists(st.lists(st.integers(1, 9), max_size=4), max_size=6), seq_len=st.integers(2, 12))
def test_tails_that_are_carried_lose_at_most_one_window(packs: list[list[int]], seq_len: int):
    """Each token is in a window, in its place, or in the last tail."""
    stream = np.arange(sum(map(sum, packs)), dtype=np.int32)
    tail, seen, dropped, first = stream[:0], [], 0, 0
    for lengths in packs:
        documents = [tail, stream[first : first + sum(lengths)]]
        windows = cut_windows(documents, seq_len)
        group = share(np.array(lengths, np.int64), seq_len, carried=len(tail))
        assert group.windows == len(windows)
        tail, first, dropped = (
            tail_of(documents, len(windows), seq_len),
            first + sum(lengths),
            dropped + group.dropped_tail_tokens,
        )
        seen += np.unique(windows).tolist()
    assert [*seen, *tail] == stream.tolist()
    assert dropped == len(tail) <= seq_len


def test_a_limit_of_windows_leaves_no_tail():
    whole = share(np.array([50, 51]), 10)
    assert (whole.windows, whole.dropped_tail_tokens) == (10, 0)
    cut = limited(whole, 4, 10)
    assert (cut.windows, cut.dropped_tail_tokens) == (4, 60)
    assert tail_of([np.arange(101, dtype=np.int32)], 4, 10).tolist() == []


def test_copies_are_found_across_groups():
    groups = [
        DocumentCounts(np.array(hashes, np.uint64), np.ones(len(hashes), np.int64))
        for hashes in ([3, 1, 3], [], [1, 2])
    ]
    assert [flags.tolist() for flags in repeated(groups)] == [[False, False, True], [], [True, False]]
