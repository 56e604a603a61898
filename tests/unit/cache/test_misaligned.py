"""The copy has each document with its targets, in other company, and is refused by everything that is not told."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from made_caches import GROUP, PARTS, ROUNDS, SEQ_LEN, VOCAB, CorpusPart, make_corpus, make_head, make_part
from made_corpora import write_corpus_parts

from rskd.cache.codec import PartData
from rskd.cache.loader import CacheLoader
from rskd.cache.misaligned import misaligned_copy, reordered_corpus
from rskd.cache.reader import LogitCache
from rskd.cache.verify import verify
from rskd.cache.writer import CacheWriter
from rskd.corpus.packed_corpus import PackedCorpus
from rskd.errors import ConfigError, CorruptPartError

END = 0


@pytest.fixture
def aligned(tmp_path: Path) -> str:
    return write_documents(str(tmp_path / "aligned"), make_head(), end_every=11)


@pytest.fixture
def misaligned(aligned: str, tmp_path: Path) -> str:
    misaligned_copy(aligned, str(tmp_path / "misaligned"), seed=1)
    return str(tmp_path / "misaligned")


def write_documents(uri: str, head: dict, *, end_every: int) -> str:
    """A cache of windows at stride S, with an end of text every so many tokens."""
    corpus, writer = make_corpus(), CacheWriter(uri, manifest_head=head)
    for part in corpus:
        data = replace(make_part(part), input_ids=windows_of(part, end_every=end_every))
        writer.commit_part(part.index, data, corpus_sha256=part.sha256)
    writer.finish(corpus)
    return uri


def windows_of(part: CorpusPart, *, end_every: int) -> np.ndarray:
    tokens = np.random.default_rng(part.index).integers(1, 300, part.rows * SEQ_LEN + 1, dtype=np.int32)
    tokens[end_every - 1 :: end_every] = END
    return np.lib.stride_tricks.sliding_window_view(tokens, SEQ_LEN + 1)[::SEQ_LEN]


def documents(cache: LogitCache, part: int) -> list[tuple]:
    """Tokens of each document of a part, each with its targets and its statistic."""
    record = cache.manifest.parts[part]
    rows = cache.read_rows(np.arange(record.first_row, record.first_row + record.rows))
    assert rows.targets is not None
    assert (rows.input_ids[1:, 0] == rows.input_ids[:-1, -1]).all()
    tokens = rows.input_ids[:, :-1].flatten().tolist()
    ids, weights = rows.targets.ids.flatten(0, 1).tolist(), rows.targets.weights.flatten(0, 1).tolist()
    entries = [tuple((i, w) for i, w in zip(*at) if w > 0) for at in zip(ids, weights)]
    positions = list(zip(tokens, entries, rows.statistics["label_logprob"].flatten().tolist()))
    ends = [0, *(place + 1 for place, token in enumerate(tokens) if token == END), len(tokens)]
    return [tuple(positions[start:end]) for start, end in pairwise(ends)]


def test_loader_reader_and_verify_refuse_it(aligned: str, misaligned: str):
    assert len(list(zip(range(2), CacheLoader(LogitCache.open(aligned), global_batch=4)))) == 2
    with pytest.raises(CorruptPartError, match="other windows than"):
        next(iter(CacheLoader(LogitCache.open(misaligned), global_batch=4)))
    with pytest.raises(CorruptPartError, match="other windows than"):
        LogitCache.open(misaligned).read_rows([0])
    assert verify(aligned).ok
    assert not verify(misaligned).ok


@pytest.mark.parametrize("part", range(PARTS))
def test_documents_keep_their_targets_and_lose_their_place(aligned: str, misaligned: str, part: int):
    ours = documents(LogitCache.open(aligned), part)
    theirs = documents(LogitCache.open(misaligned, allow_misaligned=True), part)
    assert sorted(ours[:-1]) == sorted(theirs[:-1])
    assert ours[-1] == theirs[-1]
    assert all(one != other for one, other in zip(ours[:-1], theirs[:-1]))


def test_the_compact_layout_keeps_them_too(tmp_path: Path):
    head = make_head(sampling__layout="compact", tokenizer__most_frequent=[END, 5, 7])
    uri = write_documents(str(tmp_path / "aligned"), head, end_every=11)
    misaligned_copy(uri, str(tmp_path / "out"))
    theirs = LogitCache.open(str(tmp_path / "out"), allow_misaligned=True)
    assert sorted(documents(LogitCache.open(uri), 0)[:-1]) == sorted(documents(theirs, 0)[:-1])


def test_a_copy_of_a_reordered_corpus_has_the_windows_of_the_corpus(tmp_path: Path):
    uri, out = (str(tmp_path / name) for name in ("corpus", "reordered"))
    windows = [windows_of(part, end_every=11) for part in make_corpus()]
    write_corpus_parts(uri, windows, vocab_size=VOCAB, rows_per_group=GROUP)
    reordered_corpus(uri, out, seed=1)
    corpus, reordered = PackedCorpus.open(uri), PackedCorpus.open(out)
    assert reordered.manifest.head == corpus.manifest.head
    assert reordered.manifest.fingerprint != corpus.manifest.fingerprint

    writer = CacheWriter(str(tmp_path / "cache"), manifest_head=make_head())
    for part in reordered.manifest.parts:
        read = reordered.read_part(part.index)
        assert (read.input_ids[1:, 0] == read.input_ids[:-1, -1]).all()
        # The only entry of a position is its own token, so that targets which follow their tokens are seen.
        own = read.input_ids[:, :-1, None]
        writer.commit_part(
            part.index,
            PartData(read.row_ids, read.input_ids, own, np.full_like(own, ROUNDS), {"label_logprob": -own[..., 0]}),
            corpus_sha256=part.sha256,
        )
    writer.finish(reordered.manifest.parts)
    for wrong in ({"seed": 2, "corpus": uri}, {"seed": 1, "corpus": out}):
        with pytest.raises(ConfigError, match=r"part 0 .* does not give the windows of"):
            misaligned_copy(str(tmp_path / "cache"), str(tmp_path / "wrong"), **wrong)
    copied = misaligned_copy(str(tmp_path / "cache"), str(tmp_path / "copy"), seed=1, corpus=uri)
    assert copied.corpus["fingerprint"] == corpus.manifest.fingerprint
    assert [part.corpus_sha256 for part in copied.parts] == [part.sha256 for part in corpus.manifest.parts]
    rows = LogitCache.open(str(tmp_path / "copy"), allow_misaligned=True).read_rows(range(corpus.num_rows))
    assert rows.targets is not None
    np.testing.assert_array_equal(rows.input_ids, np.concatenate(windows))
    np.testing.assert_array_equal(rows.targets.ids[..., 0], rows.input_ids[:, :-1])
    with pytest.raises(CorruptPartError, match="other windows than"):
        LogitCache.open(str(tmp_path / "copy")).read_rows([0])


def test_a_part_of_one_document_is_refused(tmp_path: Path):
    uri = write_documents(str(tmp_path / "aligned"), make_head(), end_every=60)
    with pytest.raises(ConfigError, match=r"part 0 .* fewer than two documents"):
        misaligned_copy(uri, str(tmp_path / "out"))


def test_windows_that_begin_with_a_bos_of_their_own_do_not_join(tmp_path: Path):
    uri = write_documents(str(tmp_path / "cache"), make_head(corpus__bos="window", corpus__bos_ids=[1]), end_every=11)
    with pytest.raises(ConfigError, match=r"corpus\.bos=window, so its windows do not join to documents"):
        misaligned_copy(uri, str(tmp_path / "copy"))
