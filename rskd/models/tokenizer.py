"""Tokenizers of the Hugging Face kind, and what identifies one wherever its files lie."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rskd import records
from rskd.errors import ConfigError

_END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>")  # of GPT-2, SmolLM2, Qwen, OLMo; of Llama 3

# The parts of a tokenizer that decide which ids a text gets. Truncation, padding and templates are not used here.
_DECIDING = ("model", "normalizer", "pre_tokenizer", "added_tokens")


def load_tokenizer(
    name_or_dir: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerFast:
    """The tokenizer of a hub id or a directory; its vocabulary size everywhere is `len(tokenizer)`.

    Raises ConfigError if there is none, or if it has no fast (Rust) implementation.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_dir, revision=revision, trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers raises nearly anything for files that are not a tokenizer's
        kind = "directory" if Path(name_or_dir).is_dir() else "hub id or directory"
        raise ConfigError(
            f"tokenizer {name_or_dir} cannot be loaded ({type(error).__name__}): name a {kind} that holds a "
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


def end_of_text_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """The id that ends every document: the special token of pre-training where there is one, else `eos_token`.

    The `eos_token` of a chat model ends a turn, which no document of its pre-training did.
    """
    specials = {token.content: index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    end_of_text = next((specials[token] for token in _END_OF_TEXT if token in specials), tokenizer.eos_token_id)
    if not isinstance(end_of_text, int):
        raise ConfigError(f"tokenizer {tokenizer.name_or_path} has no eos_token to end documents with: set one in it")
    return end_of_text
