import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rskd.corpus.hold_out import HoldOut, choose_hold_out, content_hash, split_masks, split_shares
from rskd.corpus.packing import DocumentCounts, Share
from rskd.errors import ConfigError


def test_content_hash_is_the_head_of_the_sha256():
    assert content_hash("ab") == int(hashlib.sha256(b"ab").hexdigest()[:16], 16)


def shares(group: DocumentCounts, rule: HoldOut, seq_len: int) -> dict[str, Share]:
    return split_shares(group, np.zeros(len(group.hashes), bool), rule, seq_len, {"train": 0, "eval": 0})


def windows(groups: list[DocumentCounts], rule: HoldOut, seq_len: int) -> tuple[int, int]:
    """Those to train on and those held out."""
    train, held_out = (
        sum(shares(group, rule, seq_len)[split].windows for group in groups) for split in ("train", "eval")
    )
    return train, held_out


def one_group(num_tokens: list[int], hashes: list[int] | None = None) -> list[DocumentCounts]:
    hashes = hashes or [content_hash(str(number)) for number in range(len(num_tokens))]
    return [DocumentCounts(np.array(hashes, np.uint64), np.array(num_tokens, np.int64))]


def random_counts(seed: int, groups: int, repeated: bool = False) -> list[DocumentCounts]:
    generator = np.random.default_rng(seed)
    sizes = generator.integers(0, 20, groups)
    high = 8 if repeated else 2**64
    return [
        DocumentCounts(generator.integers(0, high, size, np.uint64), generator.integers(1, 40, size)) for size in sizes
    ]


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(2, 12), st.integers(1, 6), st.booleans())
def test_the_threshold_is_the_smallest_that_gives_eval_windows(
    seed: int, seq_len: int, eval_windows: int, repeated: bool
):
    groups = random_counts(seed, 5, repeated)
    try:
        rule = choose_hold_out(groups, seq_len=seq_len, eval_windows=eval_windows)
    except ConfigError:
        total = sum(windows(groups, HoldOut(0), seq_len))
        assert total <= 3 * eval_windows or len(np.unique(np.concatenate([group.hashes for group in groups]))) < 8
        return
    train, held_out = windows(groups, rule, seq_len)
    assert windows(groups, HoldOut(rule.threshold - 1, rule.multiplier), seq_len)[1] < eval_windows <= held_out
    assert train > 0
    assert held_out <= max(train, 2 * eval_windows)


def test_documents_of_a_size_are_held_out_by_their_hash_alone():
    groups = one_group([50] * 200)
    rule = choose_hold_out(groups, seq_len=10, eval_windows=64)
    assert rule.multiplier == 1
    held_out = sorted(groups[0].hashes.tolist())[:13]  # 13 documents of 50 tokens are the first to give 64 windows
    assert rule.threshold == held_out[-1] + 1
    assert split_masks(groups[0].hashes, rule)["eval"].sum() == 13


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_documents_the_smaller_is_held_out(order: int):
    num_tokens = [42_411, 1_691][::order]
    for hashes in ([1 << 60, 3 << 62], [3 << 62, 1 << 60]):
        groups = one_group(num_tokens, hashes)
        rule = choose_hold_out(groups, seq_len=10, eval_windows=8)
        assert windows(groups, rule, 10) == (4241, 169)


def test_a_long_document_is_trained_on_whatever_its_hash():
    for seed in range(20):
        hashes = np.random.default_rng(seed).integers(0, 2**64, 12, np.uint64).tolist()
        groups = one_group([15_000, *[450] * 11], hashes)  # 1,499 and 44 windows each, in one stream
        train, held_out = windows(groups, choose_hold_out(groups, seq_len=10, eval_windows=64), 10)
        assert 64 <= held_out <= 2 * 64 < train


def test_equal_documents_stay_together_and_leave_something_to_train_on():
    groups = one_group([100] * 5, [7, 7, 7, 7, 9])
    rule = choose_hold_out(groups, seq_len=10, eval_windows=5)
    assert split_masks(groups[0].hashes, rule)["eval"].tolist() == [False] * 4 + [True]


def test_no_evaluation_holds_out_nothing():
    groups = random_counts(0, 3)
    assert choose_hold_out(groups, seq_len=4, eval_windows=0) == HoldOut(0)
    assert windows(groups, HoldOut(0), 4)[1] == 0
    assert choose_hold_out(one_group([100]), seq_len=4, eval_windows=0) == HoldOut(0)


@pytest.mark.parametrize(
    ("num_tokens", "hashes", "eval_windows", "message"),
    [
        ([], None, 8, "has no documents"),
        ([9000], None, 8, r"has 1 document, which cannot be both held out and trained on.*eval_windows=0"),
        ([90] * 40, [5] * 40, 8, r"has 1 document \(40 copies of it\)"),
        ([5], None, 0, r"has 1 document, which give 0 windows .* too few for"),
        (
            [20, 30],
            None,
            8,
            r"has 2 documents, which give 4 windows of corpus\.seq_len=10, too few for",
        ),
        ([5000, 15], None, 8, r"has 2 documents, each held out or trained on whole"),
    ],
)
def test_too_few_documents(num_tokens: list[int], hashes: list[int] | None, eval_windows: int, message: str):
    with pytest.raises(ConfigError, match=message):
        choose_hold_out(one_group(num_tokens, hashes), seq_len=10, eval_windows=eval_windows)


def test_shares_count_every_token():
    [group] = random_counts(3, 1)
    found = shares(group, HoldOut(2**63), 8)
    assert sum(share.documents for share in found.values()) == len(group.hashes)
    assert sum(share.tokens for share in found.values()) == group.num_tokens.sum()
    for share in found.values():
        used = share.windows * 8 + 1 if share.windows else 0
        assert share.tokens == used + share.dropped_tail_tokens
