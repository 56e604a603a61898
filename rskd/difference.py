"""The first thing in which two recipes differ: what an output was made from, and what it would be made from now."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import shorten
from typing import Any, NamedTuple

_LONGEST = 200


class Difference(NamedTuple):
    """A value by its dotted name. Its text is `train.lr=0.001, not 0.0004`."""

    key: str
    made: Any
    wanted: Any

    def __str__(self) -> str:
        made, wanted = (shorten(str(value), _LONGEST, placeholder=" …") for value in (self.made, self.wanted))
        return f"{self.key}={made}, not {wanted}"


def first_difference(made: Mapping[str, Any], wanted: Mapping[str, Any]) -> Difference | None:
    """In the order of `wanted`, nested mappings value by value; None where they are equal. What is absent is None."""
    for name in {**wanted, **made}:
        old, new = made.get(name), wanted.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            nested = first_difference(old, new)
            if nested is not None:
                return nested._replace(key=f"{name}.{nested.key}")
        elif old != new:
            return Difference(name, old, new)
    return None
