"""Bytes as text: UTF-8, with a byte order mark or without, or UTF-16 with one; a few bad bytes become U+FFFD."""

from __future__ import annotations

import codecs

from rskd.errors import ConfigError

_MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
_REPLACEMENT = "\ufffd"
_MOST = 0.3  # share of characters; a Latin-1 text has a few per cent, compressed data nearly half


def decoded(data: bytes, name: str) -> str:
    """The text of `data`, without its byte order mark.

    Raises ConfigError, naming `name`, for what is no text: it has NUL bytes, or undecodable bytes are most of it.
    """
    mark = next((mark for mark in _MARKS if data.startswith(mark)), b"")
    encoding = _MARKS.get(mark, "utf-8")
    text = str(memoryview(data)[len(mark) :], encoding, errors="replace")  # a slice of bytes is a copy
    undecodable = text.count(_REPLACEMENT)
    if undecodable:
        undecodable -= data.count(_REPLACEMENT.encode(encoding))
    if "\0" in text or undecodable > _MOST * len(text):
        problem = "holds NUL bytes" if "\0" in text else f"is mostly bytes that are not {encoding.upper()}"
        raise ConfigError(f"{name} of the corpus source {problem}, so it is no text: convert it to UTF-8, or remove it")
    return text
