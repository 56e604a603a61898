"""Datasets that are loaded: configurations, splits, folders of save_to_disk; what cannot be is refused."""

from pathlib import Path
from typing import Any

import pytest

from rskd.config import SourceConfig, validate_config
from rskd.corpus.sources import group_files, list_files, located, read_documents
from rskd.errors import ConfigError

datasets = pytest.importorskip("datasets")
ROWS = {"text": ["a", "b", None, " "], "meta": [{"body": "x"}, None, {"body": "z"}, {"body": None}], "n": [1, 2, 3, 4]}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def documents(uri: Path | str, **options: Any) -> list[str]:
    source = located(SourceConfig(kind="hf", uri=str(uri), **options))
    return [text for group in group_files(list_files(source), kind="hf") for text in read_documents(source, group)]


@pytest.fixture
def configured(tmp_path: Path) -> Path:
    """A dataset of two configurations, of which fr has a split test alone."""
    folder = tmp_path / "configured"
    folder.mkdir()
    (folder / "en.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    (folder / "fr.jsonl").write_text('{"text": "un"}\n')
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: en\n  data_files: en.jsonl\n- config_name: fr\n  data_files:\n  - split: test\n"
        "    path: fr.jsonl\n---\n"
    )
    return folder


def test_configurations_and_splits(configured: Path):
    assert documents(configured, config_name="en") == ["one", "two"]
    assert documents(configured, config_name="fr", split="test") == ["un"]
    assert documents(configured, config_name="en", split="train[:1]") == ["one"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, r"Config name is missing.*'en', 'fr'"),
        ({"config_name": "de"}, "'de' not found. Available: .*'en', 'fr'"),
        ({"config_name": "fr"}, r'Unknown split "train". Should be one of \[\'test\'\]'),
    ],
)
def test_the_reason_is_reported(configured: Path, options: dict[str, str], reason: str):
    with pytest.raises(ConfigError, match=reason) as caught:
        documents(configured, **options)
    assert "corpus.source.config_name" in str(caught.value)


def test_a_broken_file_is_the_reason(tmp_path: Path):
    (tmp_path / "train.jsonl").write_text('{"text": "a"}\n{"text"\n')
    with pytest.raises(ConfigError, match="JSON parse error"):
        documents(tmp_path)


def test_folders_of_save_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = datasets.Dataset.from_dict(ROWS)
    rows.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": rows, "test": rows.select([1])}).save_to_disk(tmp_path / "splits")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert documents(tmp_path / "one") == documents("~/splits") == ["a", "b"]
    assert documents(tmp_path / "splits", split="test") == ["b"]
    assert documents(tmp_path / "one", field="meta.body") == ["x", "z"]
    for options, message in (
        ({"split": "validation"}, "no split validation, only train, test"),
        ({"config_name": "en"}, "no configurations"),
        ({"field": "n"}, "but int64"),
    ):
        with pytest.raises(ConfigError, match=message):
            documents(tmp_path / "splits", **options)
    (tmp_path / "one" / "state.json").write_text("{")
    with pytest.raises(ConfigError, match=r"cannot|can be loaded \(JSONDecodeError"):
        documents(tmp_path / "one", split="test")


@pytest.mark.parametrize("option", ["config_name", "split"])
def test_other_kinds_have_neither(option: str):
    source = {"kind": "jsonl", "uri": "a.jsonl", option: "en"}
    with pytest.raises(ConfigError, match=f"{option}='en' is not used by source kind jsonl: remove it"):
        validate_config({"name": "a", "corpus": {"source": source}, "teacher": {"model": "b"}})
