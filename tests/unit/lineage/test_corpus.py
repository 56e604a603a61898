"""No stage reads a corpus that was packed with other settings, or for another tokenizer, than the configuration has."""

import copy
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rskd.corpus.packed_corpus import CorpusManifest
from rskd.errors import CacheMismatchError
from rskd.lineage.corpus import check_corpus
from rskd.lineage.inputs import Inputs

HEAD: dict[str, Any] = {
    "format_version": 1,
    "source": {"kind": "python_docs"},
    "tokenizer": {"name": "t", "fingerprint": "abc", "vocab_size": 384, "end_of_text_id": 0, "bos_ids": [0]},
    "bos": "document",
    "seq_len": 64,
    "seed": 0,
    "isolate_documents": False,
    "windows_per_part": 256,
    "rows_per_group": 16,
    "max_windows": None,
}


def check(made: dict[str, Any], wanted: dict[str, Any]) -> None:
    manifest = CorpusManifest.of(made | {"eval_threshold": 0}, (), ())
    check_corpus(cast(Inputs, SimpleNamespace(corpus_head=wanted)), manifest, "/home/corpus/train")


@pytest.mark.parametrize(
    ("section", "name", "value", "message"),
    [
        ("corpus", "seq_len", 32, "corpus.seq_len=32, not 64: set corpus.seq_len=32, choose another name, or remove"),
        ("corpus", "isolate_documents", True, "corpus.isolate_documents=True, not False: set corpus.isolate_documents"),
        ("corpus", "bos", "none", "corpus.bos=none, not document: set corpus.bos=none"),
        ("corpus", "max_windows", 5, "corpus.max_windows=5, not None: set corpus.max_windows=5"),
        ("tokenizer", "fingerprint", "abd", "tokenizer.fingerprint=abd, not abc: undo the change, choose another name"),
        ("tokenizer", "vocab_size", 374, "tokenizer.vocab_size=374, not 384: undo the change"),
    ],
)
def test_names_the_setting_and_both_values(section, name, value, message):
    made = copy.deepcopy(HEAD)
    check(made, HEAD)
    (made if section == "corpus" else made["tokenizer"])[name] = value
    with pytest.raises(CacheMismatchError, match=f"^/home/corpus/train was packed with {message}") as caught:
        check(made, HEAD)
    assert "remove /home/corpus" in str(caught.value)


def test_a_corpus_of_before_corpus_bos_has_none():
    made = copy.deepcopy(HEAD)
    del made["bos"], made["tokenizer"]["bos_ids"]
    check(made, HEAD | {"bos": "none", "tokenizer": HEAD["tokenizer"] | {"bos_ids": []}})
    with pytest.raises(CacheMismatchError, match=r"corpus\.bos=none, not document"):
        check(made, HEAD)
