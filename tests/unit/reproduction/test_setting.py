import json
from pydoc_data.topics import topics

import pytest
import torch
from transformers import AutoTokenizer

from rskd.config import SourceConfig, load_config, validate_config
from rskd.errors import ConfigError
from rskd.reproduction.methods import CACHES, Cache
from rskd.reproduction.scales import SCALES
from rskd.reproduction.setting import (
    _check_same_source,
    _rounds,
    _split_documents,
    _train_tokenizer,
    prepare,
    with_students,
    write_config,
)


def test_documents_are_split_without_loss_overlap_or_duplicates(tmp_path):
    texts = [f"document {index} " * 20 for index in range(200)]
    (tmp_path / "all.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in [*texts, texts[0]]))
    source = SourceConfig(kind="jsonl", uri=str(tmp_path / "all.jsonl"))
    _split_documents(source, tmp_path / "text")
    parts = [
        [json.loads(line)["text"] for line in (tmp_path / "text" / f"{name}.jsonl").read_text().splitlines()]
        for name in ("teacher", "student")
    ]
    assert sorted(parts[0] + parts[1]) == sorted(texts)
    assert 30 < len(parts[1]) < 90  # three tenths of 200


def test_the_tokenizer_has_as_many_ids_and_gives_the_text_back(tmp_path):
    text = f"{topics['typesseq']} – naïvely\n"
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": text}))
    _train_tokenizer(tmp_path / "text.jsonl", 300, tmp_path / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert len(tokenizer) == 300
    assert tokenizer.eos_token_id == 0
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_rounds_are_the_least_that_give_the_unique_tokens():
    uniform = torch.zeros(1, 4, 64)
    assert _rounds(uniform, Cache({"method": "systematic"}, 12)) == 12
    rounds = _rounds(uniform, Cache({"method": "random"}, 12))
    expected = [64 * (1 - (1 - 1 / 64) ** n) for n in (rounds - 1, rounds)]
    assert expected[0] < 12 <= expected[1]


def test_a_student_of_another_size_is_refused_where_the_scale_has_none(tmp_path):
    with pytest.raises(ConfigError, match="no students of other sizes, which ce-size-1 needs"):
        prepare(SCALES["paper"], SourceConfig(kind="python_docs"), tmp_path, {"ce", "ce-size-1"})
    assert not any(tmp_path.iterdir())


def test_a_home_has_one_source(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    one, other = (SourceConfig(kind="text", uri=str(tmp_path / name)) for name in ("a.txt", "b.txt"))
    with pytest.raises(ConfigError):
        _check_same_source(SourceConfig(kind="text", uri=str(tmp_path / "absent.txt")), tmp_path / "home")
    for _ in range(2):
        _check_same_source(one, tmp_path / "home")
    with pytest.raises(ConfigError, match=r"documents of text .*a.txt, not of text .*b.txt"):
        _check_same_source(other, tmp_path / "home")
    with pytest.raises(ConfigError, match="not of python_docs: name those"):
        _check_same_source(SourceConfig(kind="python_docs"), tmp_path / "home")


def test_the_config_of_a_home_keeps_the_students_of_tables_of_before(tmp_path):
    def write(cache, *cells):
        settings = {
            "name": "students",
            "storage": {"root": str(tmp_path)},
            "corpus": {"source": {"kind": "python_docs"}},
            "teacher": {"model": "some/teacher"},
            "samplings": {cache: CACHES[cache].sampling},
        }
        write_config(with_students(validate_config(settings), SCALES["tiny"], cells))

    (tmp_path / "students").mkdir()
    write("top_k-12", ("top_k-12", 0), ("ce", 0))
    write("top_k-50", ("top_k-50", 0), ("ce", 0), ("ce", 1))
    config = load_config(tmp_path / "students" / "config.yaml")
    assert list(config.student_specs) == ["top_k-12-seed-0", "ce-seed-0", "top_k-50-seed-0", "ce-seed-1"]
    assert {name: sampling.k for name, sampling in config.cache_samplings.items()} == {"top_k-12": 12, "top_k-50": 50}
    assert config.student_specs["top_k-12-seed-0"].sampling == "top_k-12"
