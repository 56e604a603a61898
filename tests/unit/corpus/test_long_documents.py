"""The ids of a long document are those of the whole text, whatever the tokenizer and the text."""

from collections.abc import Callable
from pydoc_data.topics import topics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, processors, trainers
from tokenizers import pre_tokenizers as pre

from rskd.corpus import long_documents
from rskd.corpus.long_documents import LongDocuments, encode

PIECE = 1024  # the smallest: a window has as many characters
PROSE = "".join(topics[name] for name in sorted(topics)[:12])
SPECIAL = ["<unk>", "<s>", "</s>"]

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN = LLAMA3.replace("{1,3}", "")


def trained(model, trainer_of, pre_tokenizer=None, normalizer=None, text: str = PROSE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer_of)
    return tokenizer


def byte_level(pre_tokenizer=None, normalizer=None, **model) -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=1500, special_tokens=SPECIAL, initial_alphabet=pre.ByteLevel.alphabet(), show_progress=False
    )
    split = pre_tokenizer or pre.ByteLevel(add_prefix_space=False)
    return trained(models.BPE(**model), trainer, split, normalizer, PROSE + "0123456789 aaaaaaaa      \n\n\n" * 40)


def regex(pattern: str, **options) -> Tokenizer:
    split = pre.Sequence(
        [pre.Split(Regex(pattern), "isolated"), pre.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    return byte_level(split, **options)


def sentence_piece(pre_tokenizer=None, normalizer=None, **model) -> Tokenizer:
    """A BPE trained on words, as SentencePiece does it; then used with the given parts."""
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        special_tokens=[*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
        if model.get("byte_fallback")
        else SPECIAL,
        show_progress=False,
    )
    words = pre.Sequence([pre.Split("\n", "isolated"), pre.Metaspace(prepend_scheme="always")])
    tokenizer = Tokenizer(trained(models.BPE(unk_token="<unk>", **model), trainer, words).model)
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    return tokenizer


def unigram(pre_tokenizer, normalizer=None) -> Tokenizer:
    trainer = trainers.UnigramTrainer(vocab_size=800, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    tokenizer = trained(
        models.Unigram(), trainer, pre.Metaspace(), normalizer, PROSE[:60_000] + "aaa aaaa =====\n" * 50
    )
    tokenizer.pre_tokenizer = pre_tokenizer
    return tokenizer


def word_piece(normalizer=None) -> Tokenizer:
    trainer = trainers.WordPieceTrainer(vocab_size=1500, special_tokens=["[UNK]"], show_progress=False)
    normalizer = normalizer or normalizers.BertNormalizer()
    return trained(models.WordPiece(unk_token="[UNK]"), trainer, pre.BertPreTokenizer(), normalizer)


def word_level() -> Tokenizer:
    """Groups of three digits count from the left, and every group is the same unknown token."""
    split = pre.Sequence([pre.Whitespace(), pre.Split(Regex(r"\p{N}{1,3}"), "isolated")])
    trainer = trainers.WordLevelTrainer(vocab_size=300, special_tokens=["<unk>"], show_progress=False)
    return trained(models.WordLevel(unk_token="<unk>"), trainer, split)


def clip() -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=1500, special_tokens=SPECIAL, end_of_word_suffix="</w>", show_progress=False
    )
    split = pre.Split(Regex(r"\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"), "removed", invert=True)
    model = models.BPE(unk_token="<unk>", end_of_word_suffix="</w>", fuse_unk=True)
    return trained(model, trainer, split, normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()]))


def prefixed() -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=1500, special_tokens=SPECIAL, continuing_subword_prefix="##", show_progress=False
    )
    model = models.BPE(unk_token="<unk>", continuing_subword_prefix="##")
    return trained(model, trainer, pre.Split("\n", "isolated"))


def with_added(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_tokens(
        [
            AddedToken("<tool>", normalized=False),
            AddedToken("\n\n", normalized=False),
            AddedToken("ness and", normalized=True, single_word=True),
            AddedToken("<left>", lstrip=True),
            AddedToken("<right>", rstrip=True),
            AddedToken("aa"),
        ]
    )
    return tokenizer


LLAMA2 = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
ALBERT = normalizers.Sequence(
    [normalizers.Replace("``", '"'), normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
)
T5 = normalizers.Sequence([normalizers.NFKC(), normalizers.Strip(), normalizers.Replace(Regex(r"\s+"), " ")])


def gpt2() -> Tokenizer:
    tokenizer = byte_level(pre.ByteLevel(add_prefix_space=True))
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "GPT-2": gpt2,
    "GPT-2 by its regex": lambda: regex(GPT2),
    "Llama 3": lambda: regex(LLAMA3, ignore_merges=True),
    "Qwen": lambda: regex(QWEN, normalizer=normalizers.NFC()),
    "bytes without words": lambda: byte_level(pre.ByteLevel(add_prefix_space=False, use_regex=False)),
    "Llama 2": lambda: sentence_piece(None, LLAMA2, byte_fallback=True, fuse_unk=True),
    "Llama 2, unknown characters": lambda: sentence_piece(None, LLAMA2, fuse_unk=True),
    "Metaspace always": lambda: sentence_piece(pre.Metaspace(prepend_scheme="always")),
    "Metaspace first": lambda: sentence_piece(pre.Metaspace(prepend_scheme="first"), byte_fallback=True),
    "Metaspace never": lambda: sentence_piece(pre.Metaspace(prepend_scheme="never")),
    "Metaspace unsplit": lambda: sentence_piece(pre.Metaspace(prepend_scheme="first", split=False)),
    "Gemma": lambda: sentence_piece(
        pre.Split(" ", "merged_with_previous"), normalizers.Replace(" ", "▁"), byte_fallback=True
    ),
    "Unigram, T5": lambda: unigram(pre.Metaspace(), T5),
    "Unigram, ALBERT": lambda: unigram(pre.Metaspace(), ALBERT),
    "Unigram unsplit": lambda: unigram(pre.Metaspace(split=False)),
    "WordPiece": word_piece,
    "WordPiece, cased": lambda: word_piece(normalizers.NFC()),
    "WordLevel, digits": word_level,
    "CLIP": clip,
    "BPE with a prefix": prefixed,
    "scripts": lambda: byte_level(pre.Sequence([pre.UnicodeScripts(), pre.ByteLevel(add_prefix_space=False)])),
    "stripped": lambda: byte_level(normalizer=normalizers.Sequence([normalizers.Strip(), normalizers.NFD()])),
    "Llama 3 with added tokens": lambda: with_added(regex(LLAMA3)),
    "Llama 2 with added tokens": lambda: with_added(sentence_piece(None, LLAMA2, byte_fallback=True)),
    "a look far ahead": lambda: regex(r"x(?=[^\0]*z)|\s+|[^x\s]+|x+"),
}

UNITS = {
    "prose": PROSE[:700],
    "one line": PROSE[:700].replace("\n", " "),
    "CRLF": PROSE[:300].replace("\n", "\r\n"),
    "CJK": "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏",
    "CJK sentences": "天地玄黄，宇宙洪荒。日月盈昃，辰宿列张。\n",
    "emoji": "👩‍👩‍👧‍👦🏳️‍🌈👍🏽",
    "combining": "e\u0301a\u0323\u0302o\u0308\u0301 ",
    "marks": "\u0301\u0323",
    "digits": "1234567890",
    "one digit": "1",
    "one letter": "a",
    "letters": "ab",
    "spaces": " ",
    "newlines": "\n",
    "blank lines": " \n\t\n",
    "tabs": "\tif x:\r\n\t\treturn\n",
    "added": "kindness and <tool>\n\n<left>  <right>   aaa\n",
    "signs": "=-=-====",
    "code": "for (int i=0;i<n;++i){x[i]+=y[i]*z[i];}",
    "Korean": "\u1112\u1161\u11ab\u1100\u1173\u11af ",
    "x": "x x",
    "z": "z",
}
LENGTHS = st.one_of(st.integers(1, 40), st.integers(200, 1500))
TEXTS = st.lists(st.tuples(st.sampled_from(sorted(UNITS)), LENGTHS, st.integers(0, 9)), min_size=1, max_size=12).map(
    lambda parts: "".join((UNITS[name] * 1600)[skipped : skipped + length] for name, length, skipped in parts)
)


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    tokenizer = KINDS[request.param]()
    tokenizer.encode_special_tokens = True
    return tokenizer


def check(tokenizer: Tokenizer, text: str) -> None:
    ids = LongDocuments(tokenizer, PIECE).encode(text)
    assert ids.dtype == np.int32
    assert ids.tolist() == encode(tokenizer, text)


def test_awkward_texts(tokenizer: Tokenizer):
    for unit in UNITS.values():
        check(tokenizer, (unit * 4000)[:4000])


@pytest.mark.parametrize("kind", ["GPT-2", "Llama 3", "Llama 2", "Gemma", "Unigram, T5", "WordPiece"])
@pytest.mark.parametrize("unit", ["prose", "one line", "CRLF", "code"])
def test_pieces_stay_short(monkeypatch: pytest.MonkeyPatch, kind: str, unit: str):
    lengths = []

    def measured(tokenizer: Tokenizer, text: str) -> list[int]:
        lengths.append(len(text))
        return encode(tokenizer, text)

    monkeypatch.setattr(long_documents, "encode", measured)
    check(KINDS[kind](), (UNITS[unit] * 400)[:12_000])
    assert len(lengths) > 10
    assert max(lengths) < 2 * PIECE


@given(text=TEXTS)
@settings(deadline=None, max_examples=8)
def test_mixed_texts(tokenizer: Tokenizer, text: str):
    check(tokenizer, text)
