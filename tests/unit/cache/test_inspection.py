from pathlib import Path

import numpy as np
import pytest
from made_caches import make_corpus, make_head, make_part

from rskd.cache.inspection import inspect
from rskd.cache.writer import CacheWriter
from rskd.errors import MissingOutputError


def test_facts_of_a_finished_cache(cache):
    found = inspect(cache.uri)
    samples = sum(int((data.values > 0).sum()) for data in cache.data)
    assert (found["tokens"], found["rows"]) == (59 * 8, 59)
    assert found["unique_per_token"] == samples / (59 * 8)
    assert found["bytes"] == sum(path.stat().st_size for path in Path(cache.uri).rglob("*") if path.is_file())
    assert found["bytes_per_token"] == found["bytes"] / found["tokens"]
    assert (found["complete"], found["parts"], found["parts_expected"]) == (True, 5, 5)


def test_histograms_count_every_position(cache):
    found = inspect(cache.uri)["histograms"]
    num_unique = np.concatenate([(data.values > 0).sum(-1).ravel() for data in cache.data])
    assert found.keys() == {"num_unique", "label_logprob"}
    assert found["num_unique"]["counts"] == np.bincount(num_unique).tolist()
    assert sum(found["label_logprob"]["counts"]) == 59 * 8


def test_how_far_an_unfinished_cache_is(tmp_path):
    uri, corpus = str(tmp_path / "cache"), make_corpus()
    writer = CacheWriter(uri, manifest_head=make_head())
    assert inspect(uri)["bytes_per_token"] is None
    for part in (corpus[3], corpus[1]):
        writer.commit_part(part.index, make_part(part), corpus_sha256=part.sha256)
    found = inspect(uri)
    assert (found["complete"], found["parts"], found["parts_expected"]) == (False, 2, 5)
    assert found["rows"] == corpus[1].rows + corpus[3].rows


def test_an_unfinished_cache_that_had_grown_expects_no_less_than_it_has(tmp_path):
    uri, corpus = str(tmp_path / "cache"), make_corpus(parts=8)
    CacheWriter(uri, manifest_head=make_head()).commit_part(6, make_part(corpus[6]), corpus_sha256=corpus[6].sha256)
    assert (inspect(uri)["parts"], inspect(uri)["parts_expected"]) == (1, 7)


def test_no_cache(tmp_path):
    with pytest.raises(MissingOutputError, match="does not exist: run rskd cache"):
        inspect(str(tmp_path / "cache"))
