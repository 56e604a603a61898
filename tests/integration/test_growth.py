"""A corpus that grows: what was packed and cached stays, byte for byte, and only what is new is computed."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest

from rskd.cache.inspection import inspect
from rskd.cache.reader import LogitCache
from rskd.cache.verify import verify
from rskd.config import DistillConfig, validate_config
from rskd.corpus.packed_corpus import PackedCorpus
from rskd.errors import CacheMismatchError, MissingOutputError
from rskd.jobs.cache import cache_logits
from rskd.jobs.pack import pack_corpus
from rskd.jobs.train import train_student

pytestmark = pytest.mark.usefixtures("ray_local")

NAMES = sorted(topics)


@dataclass(frozen=True)
class Grown:
    """A corpus and its cache, before three files were added and after."""

    config: DistillConfig
    text: Path
    old: LogitCache
    files_before: dict[str, tuple[bytes, int]]
    refusal: str  # to train when the corpus had grown and the cache had not
    summary: dict

    @property
    def uri(self) -> str:
        return self.config.cache_uri("default")


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory, tiny_teacher_dir: Path, ray_local) -> Grown:
    home = tmp_path_factory.mktemp("growth")
    text = home / "text"
    text.mkdir()
    config = make_config(home / "store", text, tiny_teacher_dir)
    for name in NAMES[:5]:
        (text / f"{name}.txt").write_text(topics[name])
    pack_corpus(config)
    cache_logits(config)
    old, before = LogitCache.open(config.cache_uri("default")), files(config.cache_uri("default"))
    for name in ("0_first_by_name", *NAMES[5:7]):
        (text / f"{name}.txt").write_text(topics[NAMES[7] if name.startswith("0") else name])
    pack_corpus(config)
    with pytest.raises(CacheMismatchError) as refused:
        train_student(config)
    summary = cache_logits(config)["default"]
    return Grown(config, text, old, before, str(refused.value), summary)


def make_config(root: Path, text: Path, teacher: Path) -> DistillConfig:
    return validate_config(
        {
            "name": "tiny",
            "storage": {"root": str(root)},
            "corpus": {
                "source": {"kind": "text", "uri": str(text)},
                "seq_len": 16,
                "eval_windows": 2,
                "windows_per_part": 100,
            },
            "teacher": {"model": str(teacher), "dtype": "float32"},
            "sampling": {"num_samples": 8, "layout": "compact"},
            "train": {"steps": 2, "global_batch": 4, "precision": "float32", "threads_per_worker": 1},
        }
    )


def files(uri: str) -> dict[str, tuple[bytes, int]]:
    """Content and time of change of each file."""
    paths = (path for path in Path(uri).rglob("*") if path.is_file())
    return {str(path.relative_to(uri)): (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


def test_only_what_is_new_is_cached(grown: Grown):
    corpus, new = PackedCorpus.open(grown.config.corpus_uri("train")), LogitCache.open(grown.uri)
    old_parts, parts, after = grown.old.manifest.parts, new.manifest.parts, files(grown.uri)
    added = parts[len(old_parts) :]
    assert parts[: len(old_parts)] == old_parts
    assert grown.files_before.items() <= after.items()
    assert after.keys() - grown.files_before.keys() == {
        "manifest-1.json",
        *(part.file for part in added),
        *(f"parts/part-{part.index:05d}.json" for part in added),
    }
    assert 0 < len(added) == len(corpus.manifest.parts) - len(old_parts)
    assert grown.summary["parts"] == len(parts)
    rows = np.arange(corpus.num_rows)
    assert new.read_rows(rows).input_ids.tolist() == corpus.read_rows(rows).input_ids.tolist()
    assert verify(grown.uri).ok
    found = inspect(grown.uri)
    assert (found["complete"], found["generation"], found["parts_expected"]) == (True, 1, len(parts))
    assert cache_logits(grown.config)["default"]["skipped"]


def test_older_generations_stay_readable(grown: Grown):
    old, new = LogitCache.open(grown.uri, generation=0), LogitCache.open(grown.uri, generation=1)
    assert old.manifest == grown.old.manifest
    assert new.manifest == LogitCache.open(grown.uri).manifest
    ours, theirs = (cache.read_rows(range(old.num_rows)) for cache in (old, new))
    assert ours.targets is not None
    assert theirs.targets is not None
    assert ours.targets.to_dense(400).equal(theirs.targets.to_dense(400))
    with pytest.raises(MissingOutputError, match="has no generation 2"):
        LogitCache.open(grown.uri, generation=2)


def test_a_student_trains_on_all_of_it_or_not_at_all(grown: Grown):
    assert "was not made from all of" in grown.refusal
    assert grown.refusal.endswith("run rskd cache")
    assert train_student(grown.config)["steps"] == 2


@pytest.mark.parametrize(("changed_to", "problem"), [(None, "is gone"), ("was other", "has 9 bytes, not ")])
def test_a_source_file_that_changed_is_named_and_the_cache_stays(grown: Grown, changed_to: str | None, problem: str):
    before, file = files(grown.uri), grown.text / f"{NAMES[2]}.txt"
    content = file.read_text()
    file.unlink() if changed_to is None else file.write_text(changed_to)
    try:
        with pytest.raises(
            CacheMismatchError, match=rf"^{file.name} of corpus source .* {problem}.*restore it"
        ) as failed:
            pack_corpus(grown.config)
        assert "\n" not in str(failed.value)
        assert cache_logits(grown.config)["default"]["skipped"]
    finally:
        file.write_text(content)
    assert pack_corpus(grown.config)["skipped"]
    assert files(grown.uri) == before


def test_a_repaired_cache_that_had_grown_says_how_far_it_is(grown: Grown, tmp_path: Path):
    root = shutil.copytree(grown.config.storage.root, tmp_path / "store")
    config = make_config(root, grown.text, Path(grown.config.teacher.model))
    uri, parts = config.cache_uri("default"), LogitCache.open(grown.uri).manifest.parts
    Path(uri, parts[1].file).unlink()
    assert [problem["part"] for problem in verify(uri, repair=True).problems] == ["part-00001"]
    found = inspect(uri)
    assert (found["complete"], found["parts"], found["parts_expected"]) == (False, len(parts) - 1, len(parts))
    with pytest.raises(MissingOutputError, match=rf"unfinished \({len(parts) - 1} of {len(parts)} parts\)"):
        LogitCache.open(uri)
    cache_logits(config)
    assert LogitCache.open(uri).manifest.parts == parts
    assert verify(uri).ok
