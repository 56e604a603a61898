"""Names and values as MLflow takes them: a sampling may be called `t=0.8`, a student `kd+ce`."""

from __future__ import annotations

import hashlib
import re

_LONGEST_NAME, _LONGEST_VALUE = 250, 6000  # MLflow's limits
_REFUSED = re.compile(r"[^/\w.\- ]")
_REFUSED_IN_MODELS = re.compile(r"[/:.%\"']")


def escaped(name: str) -> str:
    """Name of a metric or param, one for each `name`: what MLflow refuses is its code point in hex between colons.

    `t=0.8/loss` is `t:3d:0.8/loss`. A name that is too long ends in a digest of it.
    """
    name = _REFUSED.sub(lambda match: f":{ord(match[0]):x}:", name)
    if len(name) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    return f"{name[: _LONGEST_NAME - 17]}:{digest}"


def model_name(name: str) -> str:
    """Name of a logged model, which its id tells from others of the same name."""
    return _REFUSED_IN_MODELS.sub("-", name)


def shortened(value: str) -> str:
    """Value of a param, cut where it is too long."""
    return value if len(value) <= _LONGEST_VALUE else f"{value[: _LONGEST_VALUE - 1]}…"
