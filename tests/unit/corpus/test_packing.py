import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rskd.corpus.hold_out import content_hash, hold_out_threshold, split_shares
from rskd.corpus.packing import DocumentCounts, cut_windows, shuffled, tokenize
from rskd.errors import ConfigError
from rskd.models.tokenizer import load_tokenizer


def test_content_hash_is_the_head_of_the_sha256():
    assert content_hash("ab") == int(hashlib.sha256(b"ab").hexdigest()[:16], 16)


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


def random_counts(seed: int, groups: int, repeated: bool = False) -> list[DocumentCounts]:
    generator = np.random.default_rng(seed)
    sizes = generator.integers(0, 20, groups)
    high = 8 if repeated else 2**64
    return [
        DocumentCounts(generator.integers(0, high, size, np.uint64), generator.integers(1, 40, size)) for size in sizes
    ]


def windows(groups: list[DocumentCounts], threshold: int, split: str, seq_len: int) -> int:
    return sum(split_shares(group, threshold, seq_len)[split].windows for group in groups)


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(2, 12), st.integers(1, 6), st.booleans())
def test_threshold_is_the_smallest_that_gives_eval_windows(seed: int, seq_len: int, eval_windows: int, repeated: bool):
    groups = random_counts(seed, 5, repeated)
    try:
        threshold = hold_out_threshold(groups, seq_len=seq_len, eval_windows=eval_windows)
    except ConfigError:
        hashes = np.concatenate([group.hashes for group in groups]).tolist()
        fitting = [t for t in (h + 1 for h in hashes) if windows(groups, t, "eval", seq_len) >= eval_windows]
        assert not fitting or windows(groups, min(fitting), "train", seq_len) == 0
        return
    assert windows(groups, threshold, "eval", seq_len) >= eval_windows
    assert windows(groups, threshold - 1, "eval", seq_len) < eval_windows
    assert windows(groups, threshold, "train", seq_len) > 0


def test_no_evaluation_holds_out_nothing():
    groups = random_counts(0, 3)
    assert hold_out_threshold(groups, seq_len=4, eval_windows=0) == 0
    assert windows(groups, 0, "eval", 4) == 0


def test_too_few_documents_is_a_config_error():
    groups = random_counts(0, 3)
    for sizes in ({"seq_len": 4, "eval_windows": 10_000}, {"seq_len": 100_000, "eval_windows": 0}):
        with pytest.raises(ConfigError, match=r"too few for corpus\.eval_windows"):
            hold_out_threshold(groups, **sizes)


def test_shares_count_every_token():
    [group] = random_counts(3, 1)
    shares = split_shares(group, 2**63, 8)
    assert sum(share.documents for share in shares.values()) == len(group.hashes)
    assert sum(share.tokens for share in shares.values()) == group.num_tokens.sum()
    for share in shares.values():
        used = share.windows * 8 + 1 if share.windows else 0
        assert share.tokens == used + share.dropped_tail_tokens
