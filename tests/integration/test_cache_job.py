"""Caching with a real Ray and a tiny teacher: one pass, several caches, resumed and repeated byte for byte."""

import shutil
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
import torch

from rskd.cache.reader import LogitCache
from rskd.cache.verify import verify
from rskd.config import DistillConfig, validate_config
from rskd.corpus.packed_corpus import PackedCorpus
from rskd.errors import CacheMismatchError, ConfigError, CorruptPartError, MissingOutputError
from rskd.evaluation.audit import audit_cache
from rskd.jobs.cache import cache_logits
from rskd.jobs.pack import pack_corpus
from rskd.storage import Store

pytestmark = pytest.mark.usefixtures("ray_local")

ROUNDS = 12
SAMPLINGS = {
    "rskd": {"method": "systematic", "num_samples": ROUNDS, "statistics": ["label_logprob", "top1"]},
    "compact": {"method": "systematic", "num_samples": ROUNDS, "layout": "compact"},
    "top_k": {"method": "top_k", "k": 5},
}
MakeConfig = Callable[..., DistillConfig]


@pytest.fixture
def make_config(tmp_path: Path, tiny_teacher_dir: Path) -> MakeConfig:
    """A function from changed sections to a config whose corpus is packed on demand."""
    folder = tmp_path / "text"
    folder.mkdir()
    for name in sorted(topics)[:6]:
        (folder / f"{name}.txt").write_text(topics[name])

    def make(root: str | Path = tmp_path / "store", **sections: Any) -> DistillConfig:
        corpus = {"source": {"kind": "text", "uri": str(folder)}, "seq_len": 32, "eval_windows": 2}
        defaults = {
            "corpus": corpus | {"windows_per_part": 40} | sections.pop("corpus", {}),
            "teacher": {"model": str(tiny_teacher_dir), "dtype": "float32", "batch_windows": 8}
            | sections.pop("teacher", {}),
            "samplings": SAMPLINGS,
        }
        return validate_config({"name": "tiny", "storage": {"root": str(root)}, **defaults, **sections})

    return make


def cache_shas(config: DistillConfig, name: str) -> list[str]:
    return [part.sha256 for part in LogitCache.open(config.cache_uri(name)).manifest.parts]


def test_one_pass_writes_every_cache(make_config: MakeConfig, tiny_teacher_dir: Path):
    config = make_config()
    pack_corpus(config)
    summaries = cache_logits(config)

    corpus = PackedCorpus.open(config.corpus_uri("train"))
    cache = LogitCache.open(config.cache_uri("rskd"))
    assert summaries["rskd"]["tokens"] == cache.num_tokens == corpus.num_rows * 32
    assert summaries["rskd"]["parts"] == len(corpus.manifest.parts) > 2
    assert summaries["rskd"]["tokens_per_s"] > 0
    assert not summaries["rskd"]["skipped"]
    rows = cache.read_rows(range(corpus.num_rows))
    assert rows.input_ids.tolist() == corpus.read_rows(range(corpus.num_rows)).input_ids.tolist()
    assert torch.equal((rows.targets.weights * ROUNDS).round().sum(-1), torch.full((corpus.num_rows, 32), ROUNDS))
    assert int(rows.targets.ids.max()) < cache.vocab_size
    assert set(rows.statistics) == {"label_logprob", "top1"}
    compact = LogitCache.open(config.cache_uri("compact")).read_rows(range(corpus.num_rows))
    assert torch.equal(compact.targets.to_dense(cache.vocab_size), rows.targets.to_dense(cache.vocab_size))
    assert summaries["compact"]["bytes_per_token"] < summaries["rskd"]["bytes_per_token"]
    assert summaries["top_k"]["unique_per_token"] == 5
    for name in SAMPLINGS:
        assert verify(config.cache_uri(name)).ok

    for name in ("rskd", "compact"):
        report = audit_cache(config.cache_uri(name), str(tiny_teacher_dir), rows=16)
        assert report.ok, report
    assert not audit_cache(config.cache_uri("top_k"), str(tiny_teacher_dir), rows=16).ok
    again = cache_logits(config)
    assert all(summary["skipped"] for summary in again.values())


@pytest.mark.e2e
def test_what_is_missing_is_done_again_to_the_same_bytes(make_config: MakeConfig):
    config = make_config()
    pack_corpus(config)
    cache_logits(config)
    before = {name: cache_shas(config, name) for name in SAMPLINGS}

    lost = Path(config.cache_uri("top_k"))
    (lost / "manifest.json").unlink()
    (lost / "parts" / "part-00001.json").unlink()
    summaries = cache_logits(config)
    assert summaries["rskd"]["skipped"]
    assert not summaries["top_k"]["skipped"]
    assert {name: cache_shas(config, name) for name in SAMPLINGS} == before

    shutil.rmtree(config.cache_uri("rskd"))
    cache_logits(config)
    assert cache_shas(config, "rskd") == before["rskd"]


@pytest.mark.e2e
def test_parts_do_not_depend_on_the_number_of_workers(make_config: MakeConfig, tmp_path: Path):
    one = make_config()
    two = make_config(tmp_path / "other", teacher={"workers": 2})
    for config in (one, two):
        pack_corpus(config)
        cache_logits(config)
    for name in SAMPLINGS:
        assert cache_shas(one, name) == cache_shas(two, name)


def test_without_ray_corpus_and_caches_are_the_same(make_config: MakeConfig, tmp_path: Path):
    by_ray = make_config()
    here = make_config(tmp_path / "here", ray={"enabled": False}, train={"workers": 0}, tracking={"enabled": False})
    for config in (by_ray, here):
        pack_corpus(config)
        cache_logits(config)
    for split in ("train", "eval"):
        one, other = (PackedCorpus.open(config.corpus_uri(split)).manifest for config in (by_ray, here))
        assert one.digest == other.digest
    for name in SAMPLINGS:
        assert cache_shas(by_ray, name) == cache_shas(here, name)
    assert (tmp_path / "store" / "mlflow.db").exists()
    assert not (tmp_path / "here" / "mlflow.db").exists()


def test_a_cache_of_isolated_documents_is_honest(make_config: MakeConfig, tiny_teacher_dir: Path):
    config = make_config(corpus={"isolate_documents": True}, samplings={"default": {"method": "random"}})
    pack_corpus(config)
    cache_logits(config)
    assert audit_cache(config.cache_uri("default"), str(tiny_teacher_dir), rows=16).ok


def test_an_object_store(make_config: MakeConfig, object_store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)  # where the runs of an S3 root are tracked
    config = make_config(object_store.make_bucket(), tracking={"uri": None})
    pack_corpus(config)
    cache_logits(config)
    assert verify(config.cache_uri("rskd")).ok


def test_what_is_wrong_is_said_before_anything_is_written(make_config: MakeConfig, tmp_path: Path):
    config = make_config()
    with pytest.raises(MissingOutputError, match="run rskd pack"):
        cache_logits(config)
    with pytest.raises(ConfigError, match=r"does not exist|correct teacher\.model"):
        cache_logits(make_config(teacher={"model": str(tmp_path / "missing")}))
    pack_corpus(config)
    with pytest.raises(CacheMismatchError, match="seq_len=32, not 64"):
        cache_logits(make_config(corpus={"seq_len": 64}))
    assert not Store(config.home).list("caches")


def test_a_cache_made_with_another_sampling_is_not_mixed(make_config: MakeConfig):
    config = make_config()
    pack_corpus(config)
    cache_logits(config)
    changed = make_config(samplings={"rskd": {"num_samples": ROUNDS + 1}})
    with pytest.raises(CacheMismatchError, match="num_samples"):
        cache_logits(changed)


def test_the_error_of_an_actor_is_one_line(make_config: MakeConfig):
    config = make_config()
    pack_corpus(config)
    part = Path(config.corpus_uri("train")) / PackedCorpus.open(config.corpus_uri("train")).manifest.parts[1].file
    part.write_bytes(part.read_bytes()[:-10])
    with pytest.raises(CorruptPartError, match="part-00001"):
        cache_logits(config)
    with pytest.raises(MissingOutputError, match="unfinished"):
        LogitCache.open(config.cache_uri("rskd"))


def test_a_teacher_that_does_not_load_is_one_line(make_config: MakeConfig, tmp_path: Path, tiny_teacher_dir: Path):
    broken = shutil.copytree(tiny_teacher_dir, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"\0" * 100)
    config = make_config(teacher={"model": str(broken)})
    pack_corpus(config)
    with pytest.raises(ConfigError, match=r"model.safetensors is not a whole safetensors file"):
        cache_logits(config)
