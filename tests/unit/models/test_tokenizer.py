from pathlib import Path
from typing import get_args

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing
from transformers import Gemma3Config, LlamaConfig, PreTrainedTokenizerFast

from rskd.config import sections
from rskd.errors import ConfigError
from rskd.models.tokenizer import (
    BosMode,
    begin_texts_with,
    beginning_of_text,
    end_of_text_id,
    load_tokenizer,
    tokenizer_fingerprint,
    vocab_size,
    vocab_size_of_model,
)


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


def _tokenizer(template: str | None = None, **specials: str) -> PreTrainedTokenizerFast:
    """Five ids, of which the largest is 9; `template` is the post-processor's, such as `<s> $A`."""
    words = {"a": 0, "b": 1, "<s>": 2, "</s>": 3, "<mask>": 9}
    backend = Tokenizer(WordLevel(words, unk_token="a"))
    if template:
        used = [(word, words[word]) for word in template.split() if word in words]
        backend.post_processor = TemplateProcessing(single=template, special_tokens=used)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", **specials)


def test_vocab_size_is_the_largest_id_plus_one(tiny_tokenizer_dir: Path):
    assert vocab_size(load_tokenizer(str(tiny_tokenizer_dir))) == 384
    tokenizer = _tokenizer()
    assert (len(tokenizer), vocab_size(tokenizer)) == (5, 10)


def test_an_id_of_the_post_processor_counts():
    tokenizer = _tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="x $A", special_tokens=[("x", 12)])
    assert vocab_size(tokenizer) == 13


def test_a_model_with_fewer_rows_limits_the_vocabulary(tmp_path: Path):
    LlamaConfig(vocab_size=8).save_pretrained(tmp_path / "fewer")
    LlamaConfig(vocab_size=16).save_pretrained(tmp_path / "padded")
    Gemma3Config(text_config={"vocab_size": 7}).save_pretrained(tmp_path / "multimodal")
    (tmp_path / "unknown").mkdir()
    (tmp_path / "unknown" / "config.json").write_text('{"model_type": "of-another-library", "vocab_size": 4}')
    sizes = {path.name: vocab_size_of_model(_tokenizer(), str(path)) for path in tmp_path.iterdir()}
    assert sizes == {"fewer": 8, "padded": 10, "multimodal": 7, "unknown": 10}


def test_a_model_without_a_row_for_the_end_of_text(tmp_path: Path):
    LlamaConfig(vocab_size=3).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"3 output rows, none for </s> \(id 3\), the end of text") as caught:
        vocab_size_of_model(_tokenizer(), str(tmp_path))
    assert "\n" not in str(caught.value)


BEGINS = {"bos_token": "<s>", "template": "<s> $A"}
PLAIN = {"bos_token": "<s>"}
ENDS_TOO = {"bos_token": "<s>", "template": "<s> $A </s>"}
SHARED = {"bos_token": "</s>", "template": "</s> $A"}  # OPT: one token begins and ends a text


@pytest.mark.parametrize(
    ("made", "wanted", "expected"),
    [
        (BEGINS, "auto", ("document", (2,))),
        (ENDS_TOO, "auto", ("document", (2,))),
        (PLAIN, "auto", ("none", ())),
        ({}, "auto", ("none", ())),
        ({"template": "$A </s>", **PLAIN}, "auto", ("none", ())),
        ({"template": "<mask> <s> $A"}, "auto", ("document", (9, 2))),  # GLM begins with two
        ({"template": "<s> $A"}, "window", ("window", (2,))),  # it has no name, but it is there
        (BEGINS, "none", ("none", ())),
        (PLAIN, "document", ("document", (2,))),
        (PLAIN, "window", ("window", (2,))),
        (SHARED, "auto", ("none", ())),
        (SHARED, "window", ("window", (3,))),
    ],
)
def test_where_the_beginning_of_text_goes(made: dict[str, str], wanted, expected: tuple[str, tuple[int, ...]]):
    assert beginning_of_text(_tokenizer(**made), wanted, num_ids=10, isolated=False) == expected


@pytest.mark.parametrize(
    ("made", "wanted", "isolated", "message"),
    [
        ({}, "document", False, r"corpus\.bos=document needs a tokenizer with a bos_token"),
        ({}, "window", False, r"corpus\.bos=window needs a tokenizer with a bos_token"),
        ({"template": "<mask> <s> $A"}, "window", False, r"2 \(<mask> \(id 9\), <s> \(id 2\)\): set corpus\.bos="),
        (SHARED, "document", False, r"twice between documents.* set corpus\.bos=none or window"),
        (SHARED, "auto", True, r"corpus\.isolate_documents: </s> \(id 3\) begins and ends a text"),
        (SHARED, "window", True, r"corpus\.isolate_documents: </s> \(id 3\) begins and ends a text"),
        ({"bos_token": "<mask>"}, "document", False, r"8 output rows, none for <mask> \(id 9\), the beginning of text"),
    ],
)
def test_beginnings_that_a_tokenizer_cannot_give(made: dict[str, str], wanted, isolated: bool, message: str):
    with pytest.raises(ConfigError, match=message) as caught:
        beginning_of_text(_tokenizer(**made), wanted, num_ids=8, isolated=isolated)
    assert "\n" not in str(caught.value)


def test_a_padded_tokenizer_begins_as_it_does_without():
    tokenizer = _tokenizer(pad_token="<mask>", padding_side="left")
    tokenizer.backend_tokenizer.enable_padding(direction="left", length=6, pad_id=9, pad_token="<mask>")
    assert beginning_of_text(tokenizer, "auto", num_ids=10, isolated=False) == ("none", ())


def test_every_choice_of_the_config_is_implemented():
    choices = get_args(sections.CorpusConfig.model_fields["bos"].annotation)
    assert set(choices) == {"auto", *get_args(BosMode)}


def test_texts_begin_as_told_and_end_with_nothing():
    tokenizer = _tokenizer(**ENDS_TOO)
    assert tokenizer("a")["input_ids"] == [2, 0, 3]
    begin_texts_with(tokenizer, [2])
    assert (tokenizer("a")["input_ids"], tokenizer("a", "b")["input_ids"]) == ([2, 0], [2, 0, 1])
    begin_texts_with(tokenizer, [])
    assert tokenizer("a")["input_ids"] == [0]
