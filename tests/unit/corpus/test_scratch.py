"""Tokens between the passes of a pack: what is taken is what was kept, and nothing is taken in its place."""

from pathlib import Path

import numpy as np
import pytest

from rskd.corpus.scratch import Scratch, TokenizedGroup
from rskd.storage import Store

SMALL, LARGE = 2**16, 2**16 + 1


def make_group(vocab_size: int, lengths: list[int], *, has_masks: bool = False) -> TokenizedGroup:
    random = np.random.default_rng(0)
    ids = [random.integers(vocab_size, size=length).astype(np.int32) for length in lengths]
    masks = [random.integers(2, size=length).astype(np.uint8) for length in lengths]
    hashes = random.integers(2**64, size=len(lengths), dtype=np.uint64)
    return TokenizedGroup(hashes, ids, masks if has_masks else None)


def make_scratch(folder: Path, vocab_size: int = SMALL, *, has_masks: bool = False) -> Scratch:
    return Scratch.of(str(folder), vocab_size=vocab_size, has_masks=has_masks)


@pytest.mark.parametrize("has_masks", [False, True])
@pytest.mark.parametrize("vocab_size", [SMALL, LARGE])
@pytest.mark.parametrize("lengths", [[3, 0, 5], [0, 0], [], [7]], ids=str)
def test_what_is_taken_is_what_was_kept(tmp_path: Path, lengths: list[int], vocab_size: int, has_masks: bool):
    group = make_group(vocab_size, lengths, has_masks=has_masks)
    scratch = make_scratch(tmp_path, vocab_size, has_masks=has_masks)
    name = scratch.keep(4, group)
    bytes_per_token = (2 if vocab_size == SMALL else 4) + has_masks
    assert (tmp_path / "scratch" / name).stat().st_size == 8 + 16 * len(lengths) + bytes_per_token * sum(lengths)
    taken = scratch.take(name)
    assert taken is not None
    assert taken.hashes.tolist() == group.hashes.tolist()
    assert [ids.tolist() for ids in taken.ids] == [ids.tolist() for ids in group.ids]
    assert (taken.loss_masks is None) == (group.loss_masks is None)
    assert [mask.tolist() for mask in taken.loss_masks or []] == [mask.tolist() for mask in group.loss_masks or []]


def test_a_changed_or_missing_file_is_not_taken(tmp_path: Path):
    scratch = make_scratch(tmp_path)
    name = scratch.keep(0, make_group(SMALL, [9]))
    path = tmp_path / "scratch" / name
    data = path.read_bytes()
    for changed in (data[:-1], data[:-1] + bytes([data[-1] ^ 1]), b""):
        path.write_bytes(changed)
        assert scratch.take(name) is None
    scratch.remove(name)
    assert scratch.take(name) is None
    assert scratch.take("") is None
    scratch.remove("")
    assert list((tmp_path / "scratch").iterdir()) == []


def test_groups_of_equal_tokens_have_files_of_their_own(tmp_path: Path):
    scratch, group = make_scratch(tmp_path), make_group(SMALL, [9])
    first, second = (scratch.keep(index, group) for index in range(2))
    scratch.remove(first)
    assert scratch.take(second) is not None


def test_half_of_what_was_free_stays_free(tmp_path: Path):
    scratch = make_scratch(tmp_path)
    assert scratch.least_free > 0
    full = Scratch(scratch.uri, SMALL, least_free=2**62)
    assert full.keep(0, make_group(SMALL, [9])) == ""
    assert not (tmp_path / "scratch").exists()


def test_a_folder_that_cannot_be_written_keeps_nothing(tmp_path: Path):
    (tmp_path / "scratch").write_text("a file")
    assert make_scratch(tmp_path).keep(0, make_group(SMALL, [9])) == ""


def test_nothing_is_left_also_of_a_pack_that_failed_or_was_killed(tmp_path: Path):
    scratch = make_scratch(tmp_path)
    Store(scratch.uri).write("of-a-pack-that-was-killed", b"")

    def failing() -> None:
        with scratch.cleared():
            assert Store(scratch.uri).list() == []
            scratch.keep(0, make_group(SMALL, [9]))
            assert len(Store(scratch.uri).list()) == 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert list(tmp_path.iterdir()) == []
