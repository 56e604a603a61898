"""Sealed JSON: the small files that say what rskd wrote. Each carries `digest`, the sha256 of the rest of it.

    content ─► canonical JSON ─► sha256 ─► `digest` ─► canonical JSON with it ─► file

The file is canonical too (sorted keys, no spaces, ASCII), so a changed byte anywhere in it is seen.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from rskd.errors import CorruptPartError, MissingOutputError
from rskd.storage import Store

# With the comma after it, or the one before it where it is the last field.
_DIGEST = re.compile(rb'(?:,(?="digest":"\w{64}"}\Z))?"digest":"([0-9a-f]{64})",?')


def digest(content: Mapping[str, Any]) -> str:
    """sha256, in hex, of the canonical form of `content` without its field `digest`."""
    return hashlib.sha256(_canonical({key: content[key] for key in content if key != "digest"})).hexdigest()


def seal(content: Mapping[str, Any]) -> bytes:
    """The canonical form of `content` with its digest."""
    return _canonical({**content, "digest": digest(content)})


def unseal(data: bytes, origin: str, parse_object: Callable[[dict[str, Any]], Any] | None = None) -> dict[str, Any]:
    """What was sealed, without the digest; CorruptPartError, naming `origin`, if a byte differs.

    `parse_object` replaces each JSON object as it is parsed, so that a list of many never exists as dictionaries.
    """
    sealed = (match for match in _DIGEST.finditer(data) if _sha256_without(data, match) == match[1])
    if next(sealed, None) is None:
        raise CorruptPartError(f"{origin} is not what was written (its digest does not match): remove it and rerun")
    content = json.loads(data, object_hook=parse_object)
    del content["digest"]
    return content


def read(store: Store, name: str) -> dict[str, Any] | None:
    """Content of a sealed file; None where there is no file, CorruptPartError if it was changed."""
    try:
        data = store.read(name)
    except MissingOutputError:
        return None
    return unseal(data, f"{store.uri}/{name}")


def write(store: Store, name: str, content: Mapping[str, Any]) -> None:
    """Write a sealed file, replacing an older one."""
    store.write(name, seal(content))


def _sha256_without(data: bytes, field: re.Match[bytes]) -> bytes:
    """sha256, in hex, of canonical JSON without one of its fields."""
    hasher = hashlib.sha256(memoryview(data)[: field.start()])
    hasher.update(memoryview(data)[field.end() :])
    return hasher.hexdigest().encode()


def _canonical(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
