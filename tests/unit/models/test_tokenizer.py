from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from rskd.errors import ConfigError
from rskd.models.tokenizer import end_of_text_id, load_tokenizer, tokenizer_fingerprint


def test_fingerprint_does_not_depend_on_where_the_tokenizer_is(tiny_tokenizer_dir: Path, tiny_teacher_dir: Path):
    one, other = load_tokenizer(str(tiny_tokenizer_dir)), load_tokenizer(str(tiny_teacher_dir))
    assert tokenizer_fingerprint(one) == tokenizer_fingerprint(other)
    one("use", truncation=True, max_length=2, padding="max_length") if one.pad_token else one("use", truncation=True)
    assert tokenizer_fingerprint(one) == tokenizer_fingerprint(other)


def _word_tokenizer(**specials: str) -> PreTrainedTokenizerFast:
    words = WordLevel({"a": 0, "<eos>": 1, "<end>": 2, "<|endoftext|>": 3}, unk_token="a")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), **specials)


def test_fingerprint_sees_an_added_token_and_another_end():
    added = _word_tokenizer(eos_token="<eos>")
    added.add_tokens(["<extra>"])
    tokenizers = [_word_tokenizer(eos_token="<eos>"), _word_tokenizer(eos_token="<end>"), added]
    assert len({tokenizer_fingerprint(tokenizer) for tokenizer in tokenizers}) == 3


def test_end_of_text_is_that_of_pre_training_not_the_end_of_a_turn():
    assert end_of_text_id(_word_tokenizer(eos_token="<eos>")) == 1
    assert end_of_text_id(_word_tokenizer(eos_token="<eos>", bos_token="<|endoftext|>")) == 3
    with pytest.raises(ConfigError, match="no eos_token"):
        end_of_text_id(_word_tokenizer())


def test_a_missing_tokenizer_is_one_line(tmp_path: Path):
    for name in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ConfigError, match="cannot be loaded") as caught:
            load_tokenizer(str(name))
        assert "\n" not in str(caught.value)
