"""A stage reads no corpus or cache that was made with other windows or ids than its configuration and teacher have."""

import copy

import pytest

from rskd.errors import CacheMismatchError
from rskd.jobs.corpus_head import check_made_with

HEAD = {
    "seq_len": 64,
    "seed": 0,
    "isolate_documents": False,
    "bos": "document",
    "tokenizer": {"fingerprint": "abc", "vocab_size": 384},
}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("seq_len", 32, "was made with corpus.seq_len=32, not 64: set corpus.seq_len=32, or choose another name"),
        ("isolate_documents", True, "was made with corpus.isolate_documents=True, not False: set corpus.isolate"),
        ("bos", "none", "was made with corpus.bos=none, not document: set corpus.bos=none"),
        ("fingerprint", "abd", "was made with tokenizer fingerprint=abd, not abc: undo the change, or choose another"),
        ("vocab_size", 374, "was made with tokenizer vocab_size=374, not 384: undo the change, or choose another name"),
    ],
)
def test_a_corpus_of_other_settings_or_another_tokenizer(name, value, message):
    made = copy.deepcopy(HEAD)
    check_made_with(HEAD, made, made["tokenizer"], "file:///c")
    (made["tokenizer"] if name in made["tokenizer"] else made)[name] = value
    with pytest.raises(CacheMismatchError, match=f"^file:///c {message}"):
        check_made_with(HEAD, made, made["tokenizer"], "file:///c")


def test_a_corpus_of_before_corpus_bos_has_none():
    made = {name: value for name, value in HEAD.items() if name != "bos"}
    check_made_with(HEAD | {"bos": "none"}, made, made["tokenizer"], "file:///c")
    with pytest.raises(CacheMismatchError, match=r"corpus.bos=none, not document"):
        check_made_with(HEAD, made, made["tokenizer"], "file:///c")
