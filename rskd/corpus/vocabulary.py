"""Ids for which the teacher has no output row: cut where no text has them, refused by name where one has.

A tokenizer may have more ids than its model has rows: that of Gemma 3 1B has one for images.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from tokenizers import Tokenizer

from rskd.errors import ConfigError

_MOST_NAMED = 5


def check_ids(documents: Sequence[np.ndarray], tokenizer: Tokenizer, vocab_size: int) -> None:
    """ConfigError, naming the tokens, if a document has ids from `vocab_size` on."""
    beyond = {index for ids in documents for index in ids[ids >= vocab_size].tolist()}
    if beyond:
        raise ConfigError(
            f"the corpus source has tokens beyond the {vocab_size} output rows of the teacher "
            f"({_named(tokenizer, beyond)}): remove them from the texts, or choose another teacher"
        )


def cut_ids(tokenizer: Tokenizer, vocab_size: int) -> str:
    """The tokenizer's ids from `vocab_size` on, for a message; empty where there are none."""
    return _named(tokenizer, (index for index in tokenizer.get_vocab().values() if index >= vocab_size))


def _named(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
    in_order = sorted(ids)
    named = ", ".join(f"{tokenizer.id_to_token(index)} (id {index})" for index in in_order[:_MOST_NAMED])
    more = len(in_order) - _MOST_NAMED
    return f"{named} and {more} more" if more > 0 else named
