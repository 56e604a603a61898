"""Tokenizers of the Hugging Face kind: their vocabulary, what begins and ends a text, and what identifies one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Literal, NamedTuple, cast

from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

from rskd import records
from rskd.errors import ConfigError, first_line

BosMode = Literal["none", "document", "window"]

_WORD_BEGIN = "\u2581"  # SentencePiece's sign of a space
_END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>")  # of GPT-2, SmolLM2, Qwen, OLMo; of Llama 3

# The parts of a tokenizer that decide which ids a text gets. Truncation, padding and templates are not used here.
_DECIDING = ("model", "normalizer", "pre_tokenizer", "added_tokens")


def load_tokenizer(
    name_or_dir: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerFast:
    """The tokenizer of a hub id or a directory.

    Raises ConfigError if there is none, or if it has no fast (Rust) implementation.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_dir, revision=revision, trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers raises nearly anything for files that are not a tokenizer's
        kind = "directory" if Path(name_or_dir).is_dir() else "hub id or directory"
        raise ConfigError(
            f"tokenizer {name_or_dir} cannot be loaded ({first_line(error)}): name a {kind} that holds a "
            "tokenizer.json, or download it first"
        ) from None
    if not tokenizer.is_fast:
        raise ConfigError(f"tokenizer {name_or_dir} has no fast implementation: convert it to a tokenizer.json")
    return tokenizer


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """sha256, in hex, of what decides the ids of a text and of the end-of-text id; not of names or paths."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    deciding = {part: backend[part] for part in _DECIDING}
    return records.digest(deciding | {"end_of_text_id": end_of_text_id(tokenizer)})


def token_text(tokenizer: PreTrainedTokenizerFast, token_id: int) -> str:
    """The text of one token as it stands within a text: with its space before it, which decoding it alone may drop."""
    text = cast(str, tokenizer.decode([token_id]))
    begins_word = str(tokenizer.convert_ids_to_tokens(token_id)).startswith(_WORD_BEGIN)
    return f" {text}" if begins_word and not text.startswith(" ") else text


def end_of_text_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """The id that ends every document: the special token of pre-training where there is one, else `eos_token`.

    The `eos_token` of a chat model ends a turn, which no document of its pre-training did.
    """
    specials = {token.content: index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    end_of_text = next((specials[token] for token in _END_OF_TEXT if token in specials), tokenizer.eos_token_id)
    if not isinstance(end_of_text, int):
        raise ConfigError(f"tokenizer {tokenizer.name_or_path} has no eos_token to end documents with: set one in it")
    return end_of_text


def vocab_size(tokenizer: PreTrainedTokenizerFast) -> int:
    """The largest id that the tokenizer can give, plus one: more than `len(tokenizer)` where there are holes."""
    text, pair = (tokenizer("a", second, padding=False, truncation=False)["input_ids"] for second in (None, "a"))
    return max(*tokenizer.get_vocab().values(), *text, *pair) + 1


def vocab_size_of_model(tokenizer: PreTrainedTokenizerFast, model_dir: str, *, trust_remote_code: bool = False) -> int:
    """`vocab_size`, or the number of output rows of the model of `model_dir` where the tokenizer has more ids.

    Gemma 3 1B has such a tokenizer. A config that Transformers does not know limits nothing: the head itself is
    checked when the teacher runs. Raises ConfigError if the model has no row for the end of a text.
    """
    size = vocab_size(tokenizer)
    try:
        config = AutoConfig.from_pretrained(model_dir, trust_remote_code=trust_remote_code)
    except (OSError, ValueError):
        return size
    size = min(size, getattr(config.get_text_config(), "vocab_size", None) or size)
    _require_row(tokenizer, end_of_text_id(tokenizer), size, "end of text")
    return size


class BeginningOfText(NamedTuple):
    """Where a corpus has the tokens that begin a text, and which they are."""

    mode: BosMode
    ids: tuple[int, ...]


def beginning_of_text(
    tokenizer: PreTrainedTokenizerFast, wanted: Literal["auto"] | BosMode, *, num_ids: int, isolated: bool
) -> BeginningOfText:
    """What `corpus.bos` means for this tokenizer: `auto` begins each document as the tokenizer begins a text.

    A BOS that is also the end of text (GPT-2, OPT) stands before each document already, so `auto` is then `none`.
    `isolated` documents are cut off from it. Raises ConfigError for what the tokenizer cannot do.
    """
    own = _begins_with(tokenizer)
    if wanted == "none" or (wanted == "auto" and not own):
        return BeginningOfText("none", ())
    ids = own or ((tokenizer.bos_token_id,) if isinstance(tokenizer.bos_token_id, int) else ())
    if not ids:
        raise ConfigError(
            f"corpus.bos={wanted} needs a tokenizer with a bos_token, {tokenizer.name_or_path} has none: set "
            "corpus.bos=none"
        )
    if wanted == "window" and len(ids) > 1:
        raise ConfigError(
            f"corpus.bos=window puts one token at the start of a window, {tokenizer.name_or_path} begins a text with "
            f"{len(ids)} ({_named(tokenizer, ids)}): set corpus.bos=document"
        )
    for index in ids:
        _require_row(tokenizer, index, num_ids, "beginning of text")
    if end_of_text_id(tokenizer) not in ids:
        return BeginningOfText("document" if wanted == "auto" else wanted, ids)
    if isolated:
        raise ConfigError(
            f"corpus.bos={wanted} with corpus.isolate_documents: {_named(tokenizer, ids)} begins and ends a text, so a "
            "document would be isolated from its own beginning: set corpus.bos=none, or isolate_documents=false"
        )
    if wanted == "document":
        raise ConfigError(
            f"corpus.bos=document would put {_named(tokenizer, ids)} twice between documents, it ends them too: set "
            "corpus.bos=none or window"
        )
    return BeginningOfText("none", ()) if wanted == "auto" else BeginningOfText("window", ids)


def begin_texts_with(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> None:
    """Let the tokenizer put `ids` before every text that it encodes with special tokens, and nothing after it."""
    tokens = [str(token) for token in tokenizer.convert_ids_to_tokens(list(ids))]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=[*tokens, "$A"],
        pair=[*tokens, "$A", "$B"],
        special_tokens=list(zip(tokens, ids)),
    )


def _begins_with(tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """What the tokenizer's post-processor puts before a text."""
    encoded = tokenizer("a", padding=False, truncation=False, return_special_tokens_mask=True)
    added = takewhile(lambda pair: pair[1], zip(encoded["input_ids"], encoded["special_tokens_mask"]))
    return tuple(index for index, _ in added)


def _require_row(tokenizer: PreTrainedTokenizerFast, index: int, rows: int, role: str) -> None:
    if index >= rows:
        raise ConfigError(
            f"the teacher has {rows} output rows, none for {_named(tokenizer, (index,))}, the {role} of its tokenizer: "
            "correct the tokenizer, or choose another teacher"
        )


def _named(tokenizer: PreTrainedTokenizerFast, ids: tuple[int, ...]) -> str:
    return ", ".join(f"{tokenizer.convert_ids_to_tokens(index)} (id {index})" for index in ids)
