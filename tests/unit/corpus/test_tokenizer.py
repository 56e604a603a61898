from pathlib import Path

import pytest

from rskd.corpus.tokenizer import end_of_text_id, load_tokenizer, tokenizer_fingerprint
from rskd.errors import ConfigError


def test_fingerprint_does_not_depend_on_where_the_tokenizer_is(tiny_tokenizer_dir: Path, tiny_teacher_dir: Path):
    one, other = load_tokenizer(str(tiny_tokenizer_dir)), load_tokenizer(str(tiny_teacher_dir))
    assert tokenizer_fingerprint(one) == tokenizer_fingerprint(other)
    one("use", truncation=True, max_length=2, padding="max_length") if one.pad_token else one("use", truncation=True)
    assert tokenizer_fingerprint(one) == tokenizer_fingerprint(other)


def test_fingerprint_sees_an_added_token_and_another_end(tiny_tokenizer_dir: Path):
    fingerprints = {tokenizer_fingerprint(load_tokenizer(str(tiny_tokenizer_dir)))}
    added = load_tokenizer(str(tiny_tokenizer_dir))
    added.add_tokens(["<extra>"])
    fingerprints.add(tokenizer_fingerprint(added))
    added.eos_token = "<extra>"
    fingerprints.add(tokenizer_fingerprint(added))
    assert len(fingerprints) == 3


def test_end_of_text_is_the_eos_token(tiny_tokenizer_dir: Path):
    tokenizer = load_tokenizer(str(tiny_tokenizer_dir))
    assert end_of_text_id(tokenizer) == tokenizer.convert_tokens_to_ids("<|endoftext|>")
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="no eos_token"):
        end_of_text_id(tokenizer)


def test_a_missing_tokenizer_is_one_line(tmp_path: Path):
    for name in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ConfigError, match="cannot be loaded") as caught:
            load_tokenizer(str(name))
        assert "\n" not in str(caught.value)
