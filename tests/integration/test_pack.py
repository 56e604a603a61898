"""Packing with a real Ray: the windows are a pure function of the source, and nothing packed ever moves."""

import json
import os
import shutil
from itertools import chain
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
import ray
from ray.data import DataContext
from transformers import AutoTokenizer

from rskd import records
from rskd.config import DistillConfig, validate_config
from rskd.corpus import sources
from rskd.corpus.hold_out import content_hash
from rskd.corpus.packed_corpus import PackedCorpus
from rskd.corpus.packing import shuffled, tokenize
from rskd.corpus.scratch import Scratch
from rskd.errors import CacheMismatchError, ConfigError, CorruptPartError
from rskd.jobs import pack_worker
from rskd.jobs.pack import pack_corpus
from rskd.storage import Store

pytestmark = pytest.mark.usefixtures("ray_local")

SEQ_LEN = 16
NAMES = sorted(topics)[:9]
FINGERPRINTS = ["b660e04ae871", "7084a11e98db"]  # of train and eval with zzz.txt added, as rskd has always packed them


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of nine files in several groups."""
    monkeypatch.setattr(sources, "GROUP_BYTES", 12_000)
    folder = tmp_path / "text"
    folder.mkdir()
    for name in NAMES:
        (folder / f"{name}.txt").write_text(topics[name])
    return folder


@pytest.fixture
def make_config(tmp_path: Path, text: Path, tiny_teacher_dir: Path):
    """A function from changed corpus settings to a config; `root` is another place to write to."""

    def make(
        root: Path | str = tmp_path / "store", name: str = "tiny", with_ray: bool = True, **corpus: Any
    ) -> DistillConfig:
        source = {"kind": "text", "uri": str(text)}
        settings = {"source": source, "seq_len": SEQ_LEN, "eval_windows": 5, "windows_per_part": 24}
        return validate_config(
            {
                "name": name,
                "storage": {"root": str(root)},
                "corpus": settings | corpus,
                "teacher": {"model": str(tiny_teacher_dir)},
                "ray": {"enabled": with_ray},
                "train": {"workers": int(with_ray)},
                "tracking": {"enabled": False},
            }
        )

    return make


def write_lines(path: Path, documents: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))


def open_splits(config: DistillConfig) -> tuple[PackedCorpus, PackedCorpus]:
    return PackedCorpus.open(config.corpus_uri("train")), PackedCorpus.open(config.corpus_uri("eval"))


def expected_windows(corpus: PackedCorpus, text: Path, tokenizer_dir: Path, *, held_out: bool) -> list[list[int]]:
    """The split by definition, from the manifest's groups and the text: plain Python, no code of the packer."""
    tokenizer, manifest = AutoTokenizer.from_pretrained(tokenizer_dir), corpus.manifest
    windows, tail = [], []
    for index, group in enumerate(manifest.groups):
        texts = [(text / file["name"]).read_text() for file in group["files"]]
        ordered = [texts[i] for i in shuffled(len(texts), seed=manifest.seed, group=index)]
        kept = [t for t in ordered if (content_hash(t) < manifest.eval_threshold) == held_out]
        stream = [*tail, *chain.from_iterable([*tokenizer(t)["input_ids"], tokenizer.eos_token_id] for t in kept)]
        starts = range(0, len(stream) - SEQ_LEN, SEQ_LEN)
        windows += [stream[start : start + SEQ_LEN + 1] for start in starts]
        # The last group of a pack hands its tail on to the next pack.
        tail = stream[starts[-1] + SEQ_LEN + 1 if starts else 0 :] if "tail" in group else []
    assert manifest.groups[-1]["tail"] == tail
    return windows


def files_under(root: Path) -> dict[str, bytes]:
    """Every file whose bytes no clock decides."""
    files = (path for path in sorted(root.rglob("*")) if path.is_file() and "costs" not in path.parts)
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def test_every_token_is_in_its_window(make_config, text: Path, tiny_teacher_dir: Path):
    config = make_config()
    summary = pack_corpus(config)
    train, held_out = open_splits(config)
    for corpus, is_eval in ((train, False), (held_out, True)):
        windows = corpus.read_rows(np.arange(corpus.num_rows))
        assert windows.input_ids.tolist() == expected_windows(corpus, text, tiny_teacher_dir, held_out=is_eval)
    assert len(train.manifest.groups) > 2
    assert summary["documents"] == len(NAMES)
    assert summary["train"]["documents"] + summary["eval"]["documents"] == len(NAMES)
    assert summary["eval"]["windows"] == held_out.num_rows >= 5
    sizes = [part.rows for part in train.manifest.parts]
    assert max(sizes) == 24
    assert len([size for size in sizes if size < 24]) <= len(train.manifest.groups)
    assert [part.first_row for part in train.manifest.parts] == [sum(sizes[:index]) for index in range(len(sizes))]


def test_the_number_of_workers_changes_nothing(make_config, tmp_path: Path):
    limits = DataContext.get_current().execution_options
    stores = {}
    for workers in (1, 4):
        usual, limits.resource_limits = limits.resource_limits, limits.resource_limits.copy(cpu=workers)
        pack_corpus(make_config(root=tmp_path / f"store{workers}"))
        limits.resource_limits = usual
        stores[workers] = files_under(tmp_path / f"store{workers}")
    assert stores[1] == stores[4]
    assert sum(name.endswith(".parquet") for name in stores[1]) > 4


@pytest.mark.parametrize("room", ["enough", "none", "lost"])
def test_a_text_is_tokenized_once_where_there_is_room(
    make_config,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    room: str,
    caplog: pytest.LogCaptureFixture,
):
    """With the same bytes in any case, also of a pack of added files."""
    if room == "none":
        monkeypatch.setattr(Scratch, "keep", lambda self, index, group: "")
    if room == "lost":  # another pack on an object store cleared it
        monkeypatch.setattr(Scratch, "take", lambda self, name: None)
    tokenized: list[int] = []
    monkeypatch.setattr(pack_worker, "tokenize", lambda *args: tokenized.append(1) or tokenize(*args))
    pack_corpus(make_config(with_ray=room == "enough"))
    shutil.copytree(tmp_path / "store", tmp_path / "first")
    (text / "zzz.txt").write_text(topics[sorted(topics)[21]])
    pack_corpus(make_config(with_ray=False))

    config = make_config(root=tmp_path / "first", with_ray=False)
    before = len(tokenized)
    pack_corpus(config)
    assert len(tokenized) - before == (1 if room == "enough" else 2)
    assert files_under(tmp_path / "first") == files_under(tmp_path / "store")
    corpora = open_splits(config)
    assert [corpus.manifest.fingerprint[:12] for corpus in corpora] == FINGERPRINTS
    assert not Path(config.corpus_uri("train")).with_name("scratch").exists()
    assert ("are tokenized twice" in caplog.text) == (room == "none")


def test_an_interrupted_pack_leaves_no_scratch(make_config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = make_config(with_ray=False)
    corpus = Path(config.home) / "corpus"

    def interrupted(*args: object, **kwargs: object) -> None:
        assert len(list((corpus / "scratch").iterdir())) > 2
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pack_worker, "write_part", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pack_corpus(config)
    assert list(corpus.iterdir()) == []
    (corpus / "scratch").mkdir()
    (corpus / "scratch" / "of-a-pack-that-was-killed").touch()
    pack_corpus(config)
    assert sorted(path.name for path in corpus.iterdir()) == ["eval", "train"]


def test_added_files_move_nothing(make_config, text: Path, tmp_path: Path, tiny_teacher_dir: Path):
    config = make_config()
    pack_corpus(config)
    before, (train, held_out) = files_under(tmp_path / "store"), open_splits(config)
    (text / "0_first_by_name.txt").write_text(topics[sorted(topics)[20]])
    (text / "zzz.txt").write_text(topics[sorted(topics)[21]])
    assert pack_corpus(config)["documents"] == len(NAMES) + 2

    after, (new_train, new_held_out) = files_under(tmp_path / "store"), open_splits(config)
    assert {name: after[name] for name in before if name.endswith(".parquet")}.items() <= before.items()
    assert new_train.num_rows > train.num_rows
    assert new_train.manifest.parts[: len(train.manifest.parts)] == train.manifest.parts
    assert new_train.manifest.eval_threshold == train.manifest.eval_threshold
    for corpus, is_eval in ((new_train, False), (new_held_out, True)):
        windows = corpus.read_rows(np.arange(corpus.num_rows))
        assert windows.input_ids.tolist() == expected_windows(corpus, text, tiny_teacher_dir, held_out=is_eval)
    assert new_held_out.manifest.up_to(len(held_out.manifest.groups)) == held_out.manifest


def test_tails_of_small_files_are_carried_on(make_config, text: Path, tmp_path: Path, tiny_teacher_dir: Path):
    config = make_config(source={"kind": "jsonl", "uri": str(tmp_path / "lines")}, with_ray=False)
    (tmp_path / "lines").mkdir()
    write_lines(tmp_path / "lines" / "a.jsonl", [topics[name] for name in NAMES])
    lost = [pack_corpus(config)]
    for number in range(8):
        write_lines(tmp_path / "lines" / f"b{number}.jsonl", [topics[NAMES[number]][:20]])
        before, corpora = files_under(tmp_path / "store"), open_splits(config)
        lost.append(pack_corpus(config))
        parts = {name: data for name, data in before.items() if name.endswith(".parquet")}
        assert parts.items() <= files_under(tmp_path / "store").items()
        for split, old, new in zip(("train", "eval"), corpora, open_splits(config)):
            assert new.manifest.parts[: len(old.manifest.parts)] == old.manifest.parts
            dropped = [summary[split]["dropped_tail_tokens"] for summary in (lost[0], lost[-1])]
            assert dropped[1] - dropped[0] <= SEQ_LEN
            assert new.manifest.up_to(len(old.manifest.groups)) == old.manifest
            assert new.manifest.up_to(len(old.manifest.groups)).tail.tolist() == old.manifest.tail.tolist()
    added = lost[-1]["tokens"] - lost[0]["tokens"]
    windows = sum(lost[-1][split]["windows"] - lost[0][split]["windows"] for split in ("train", "eval"))
    assert added > 5 * SEQ_LEN
    assert windows * (SEQ_LEN + 1) + lost[-1]["dropped_tail_tokens"] - lost[0]["dropped_tail_tokens"] == added


def test_a_corpus_of_before_tails_were_kept_grows(make_config, text: Path):
    config = make_config(with_ray=False)
    pack_corpus(config)
    for corpus in open_splits(config):
        content = corpus.manifest.to_dict()
        old = {"tail", "duplicate_documents"}
        content["groups"] = [{key: group[key] for key in group if key not in old} for group in content["groups"]]
        content["source"] = {key: content["source"][key] for key in ("kind", "uri", "field")}
        records.write(Store(corpus.uri), "manifest.json", content)
    old_corpora = open_splits(config)
    assert pack_corpus(config)["skipped"]
    (text / "zzz.txt").write_text(topics[sorted(topics)[21]])
    assert pack_corpus(config)["duplicate_documents"] == 0
    for old, new in zip(old_corpora, open_splits(config)):
        assert new.manifest.parts[: len(old.manifest.parts)] == old.manifest.parts
        assert new.manifest.groups[-1]["tail"] == new.manifest.tail.tolist()


def test_names_of_any_bytes(make_config, text: Path, tmp_path: Path):
    names = [os.fsdecode(b"caf\xe9.txt"), "日本 [1].txt", "~a.txt", "b\nc.txt"]
    for name in names:
        (text / name).write_text(f"a document called {name!a}")
    config = make_config()
    assert pack_corpus(config)["documents"] == len(NAMES) + len(names)
    packed = {file["name"] for group in open_splits(config)[0].manifest.groups for file in group["files"]}
    assert set(names) < packed
    assert pack_corpus(config)["skipped"]
    (text / names[0]).unlink()
    with pytest.raises(CacheMismatchError, match=r"caf\\udce9.txt of corpus source .* is gone"):
        pack_corpus(config)


@pytest.mark.parametrize("order", [1, -1])
def test_a_long_document_is_not_held_out(make_config, tmp_path: Path, order: int, caplog: pytest.LogCaptureFixture):
    documents = ["\n".join(topics[name] for name in NAMES), topics[NAMES[0]][:1500]][::order]
    write_lines(tmp_path / "two.jsonl", documents)
    source = {"kind": "jsonl", "uri": str(tmp_path / "two.jsonl")}
    config = make_config(source=source, with_ray=False)
    summary = pack_corpus(config)
    train, held_out = open_splits(config)
    assert 5 <= summary["eval"]["windows"] < summary["train"]["windows"] / 10
    assert f"{held_out.num_rows} of {train.num_rows + held_out.num_rows:,} windows are held out" in caplog.text
    write_lines(tmp_path / "two.jsonl", documents[:1])
    with pytest.raises(ConfigError, match="the corpus source has 1 document"):
        pack_corpus(make_config(source=source, name="one", with_ray=False))


def test_a_pack_that_died_between_the_manifests_is_finished(make_config, text: Path, tmp_path: Path):
    config = make_config()
    pack_corpus(config)
    old_train = (tmp_path / "store" / "tiny" / "corpus" / "train" / "manifest.json").read_bytes()
    (text / "zzz.txt").write_text(topics[sorted(topics)[21]])
    pack_corpus(config)
    whole = files_under(tmp_path / "store")
    Store(config.corpus_uri("train")).write("manifest.json", old_train)
    assert not pack_corpus(config)["skipped"]
    assert files_under(tmp_path / "store") == whole

    Store(config.corpus_uri("train")).remove("manifest.json")
    (tmp_path / "store" / "tiny" / "corpus" / "train" / "parts" / "part-00999.parquet").write_text("left over")
    assert not pack_corpus(config)["skipped"]
    assert "tiny/corpus/train/parts/part-00999.parquet" not in files_under(tmp_path / "store")


def test_a_rerun_is_skipped(make_config, tmp_path: Path):
    first = pack_corpus(make_config())
    before = files_under(tmp_path / "store")
    again = pack_corpus(make_config())
    assert again["skipped"]
    assert not first["skipped"]
    assert {key: again[key] for key in ("train", "eval", "tokens")} == {
        key: first[key] for key in ("train", "eval", "tokens")
    }
    assert files_under(tmp_path / "store") == before


def test_a_duplicate_is_on_the_same_side(make_config, text: Path):
    for name in NAMES:
        shutil.copy(text / f"{name}.txt", text / f"{name}-copy.txt")
    config = make_config()
    pack_corpus(config)
    assert pack_corpus(config)["duplicate_documents"] == len(NAMES)
    train, held_out = (corpus.manifest.totals["documents"] for corpus in open_splits(config))
    assert train % 2 == held_out % 2 == 0
    assert held_out > 0


def test_no_evaluation_holds_nothing_out(make_config):
    config = make_config(eval_windows=0)
    summary = pack_corpus(config)
    assert (summary["eval"]["windows"], summary["eval"]["documents"], summary["eval"]["parts"]) == (0, 0, 0)
    assert PackedCorpus.open(config.corpus_uri("eval")).num_rows == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seq_len": 8}, r"corpus\.seq_len=16, not 8"),
        ({"seed": 1}, r"corpus\.seed=0, not 1"),
        ({"isolate_documents": True}, r"corpus\.isolate_documents=False, not True"),
        ({"windows_per_part": 8}, r"corpus\.windows_per_part=24, not 8"),
        ({"eval_windows": 5000}, r"fewer than corpus\.eval_windows=5000"),
    ],
)
def test_other_settings_are_a_mismatch(make_config, tmp_path: Path, change: dict[str, Any], message: str):
    pack_corpus(make_config())
    before = files_under(tmp_path / "store")
    with pytest.raises(CacheMismatchError, match=message):
        pack_corpus(make_config(**change))
    assert files_under(tmp_path / "store") == before


def test_a_changed_source_is_a_mismatch(make_config, text: Path):
    pack_corpus(make_config())
    (text / f"{NAMES[0]}.txt").unlink()
    with pytest.raises(CacheMismatchError, match=f"{NAMES[0]}.txt .*is gone"):
        pack_corpus(make_config())


def test_wrong_configs_write_nothing(make_config, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    bad_line = tmp_path / "bad.jsonl"
    bad_line.write_text(json.dumps({"body": "no text"}))
    for corpus in (
        {"source": {"kind": "text", "uri": str(tmp_path / "missing")}},
        {"source": {"kind": "text", "uri": str(tmp_path / "empty")}},
        {"source": {"kind": "jsonl", "uri": str(bad_line)}},  # seen by a worker
        {"eval_windows": 100_000},
        {"seq_len": 100_000, "eval_windows": 0},
        {"tokenizer": str(tmp_path / "missing")},
    ):
        with pytest.raises(ConfigError) as caught:
            pack_corpus(make_config(**corpus))
        assert "\n" not in str(caught.value)
        assert not any("corpus" in name for name in files_under(tmp_path / "store"))


def test_an_unwritable_root(make_config, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="root"):
        pack_corpus(make_config(root=tmp_path / "file" / "store"))


def test_a_tokenizer_that_does_not_fit_the_teacher(make_config, tiny_tokenizer_dir: Path, tmp_path: Path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_dir)
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(ConfigError, match="gives other ids than the tokenizer of teacher"):
        pack_corpus(make_config(tokenizer=str(tmp_path / "other")))
    assert pack_corpus(make_config(tokenizer=str(tiny_tokenizer_dir)))["documents"] == len(NAMES)


def test_a_truncated_part(make_config):
    config = make_config()
    pack_corpus(config)
    train, _ = open_splits(config)
    path = Path(config.corpus_uri("train")) / train.manifest.parts[1].file
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CorruptPartError, match="part-00001"):
        train.read_part(1)


def test_an_object_store_holds_the_same_corpus(make_config, tmp_path: Path, text: Path, object_store):
    bucket = object_store.make_bucket()
    pack_corpus(make_config())
    Store(f"{bucket}/text").fs.put(str(text), f"{bucket}/text", recursive=True)
    remote = make_config(root=f"{bucket}/root", source={"kind": "text", "uri": f"{bucket}/text"})
    pack_corpus(remote)
    assert pack_corpus(remote)["skipped"]
    for here, there in zip(open_splits(make_config()), open_splits(remote), strict=True):
        assert here.manifest.parts == there.manifest.parts
        np.testing.assert_array_equal(here.read_rows([3, 1]).input_ids, there.read_rows([3, 1]).input_ids)
        np.testing.assert_array_equal(here.read_groups([0]).input_ids, there.read_groups([0]).input_ids)


def test_ray_is_started_once():
    from rskd.config import RayConfig
    from rskd.jobs.ray_session import ensure_ray

    node = ray.get_runtime_context().get_node_id()
    ensure_ray(RayConfig())
    assert ray.get_runtime_context().get_node_id() == node
    assert ray.cluster_resources()["CPU"] >= 4
