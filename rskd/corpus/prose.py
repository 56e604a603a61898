"""Readable prose from docstrings and plain-text manuals: paragraphs without markup, and openings of a given length."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence

_MARKUP = (
    (re.compile(r":[a-z]+(?::[a-z]+)?:`~?([^`<]+?)(?:\s*<[^`>]*>)?`"), r"`\1`"),  # :func:`name`
    (re.compile(r"``([^`]+)``"), r"`\1`"),
    (re.compile(r"`([^`\n']+)'"), r"`\1`"),  # quoted as in TeX
    (re.compile(r"\*\*([^*\n]+)\*\*"), r"\1"),
    (re.compile(r"(?<![\w*`(])\*(\w[\w .-]*)\*(?![\w*`])"), r"\1"),
    (re.compile(r"::(?=\n|$)"), ":"),
)
_NOT_PROSE = re.compile(r">>>|::=|\.\. \w|[=~*+#-]{4}|^\s*[:@]\w+|[|\t]|\$[A-Z]|__all__|https?://", re.MULTILINE)
_VERSIONS = re.compile(r"(New|Added|Changed|Deprecated|Removed) (in|since) version ")
_BLOCK = re.compile(r"^(\s|[-*o•] |\d+[.)] |[\w*,]+( [\w*,]+)? +-- )", re.MULTILINE)  # code or a list, whose lines stay
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'`(])")


def num_words(text: str) -> int:
    """Words of a text, as white space separates them."""
    return len(text.split())


def clean_paragraphs(text: str, name: str) -> tuple[str, ...]:
    """The paragraphs of a text up to the first that is no prose, list or code; lines of prose are joined.

    Notes on versions, and a first line that only shows how `name` is called, are left out.
    """
    found: list[str] = []
    for raw in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        paragraph = raw.rstrip()
        if _VERSIONS.match(paragraph) or (not found and _is_call(paragraph, name)):
            continue
        if not paragraph or _NOT_PROSE.search(paragraph):
            break
        found.append(_without_markup(paragraph))
    if found and found[0][-1].isalnum():
        found[0] += "."
    return tuple(found)


def cut(paragraphs: Sequence[str], enough: int, most: int) -> tuple[str, Sequence[str]]:
    """The first paragraphs, until they have `enough` words, and those after them; `most` words at most.

    A first paragraph that is too long ends with a sentence; so does all that leads to something left out.
    """
    words, number = 0, 0
    while number < len(paragraphs) and words < enough:
        words += num_words(paragraphs[number])
        if words > most and number:
            break
        number += 1
    taken = list(paragraphs[:number])
    while (
        taken and not _is_block(taken[-1]) and (not taken[-1].endswith((".", "!", "?")) or num_words(taken[-1]) > most)
    ):
        shorter = _SENTENCE_END.split(taken[-1])[:-1]
        taken[-1:] = [" ".join(shorter)] if shorter else []
    return "\n\n".join(taken), paragraphs[number:]


def _is_block(paragraph: str) -> bool:
    return _BLOCK.search(paragraph) is not None


def _is_call(paragraph: str, name: str) -> bool:
    last = name.rpartition(".")[2]
    return re.fullmatch(rf"(\w+\.)*{re.escape(last)}\(.*\)\s*(->.*|:)?", paragraph, re.DOTALL) is not None


def _without_markup(paragraph: str) -> str:
    if not _is_block(paragraph):
        paragraph = " ".join(paragraph.split())
    for pattern, replacement in _MARKUP:
        paragraph = pattern.sub(replacement, paragraph)
    return paragraph
