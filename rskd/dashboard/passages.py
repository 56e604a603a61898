"""The passages of the newest evaluations, token by token, as compact as a page needs them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np

from rskd import records
from rskd.errors import OutputError
from rskd.evaluation.passages import TokenValues, from_parquet
from rskd.evaluation.results import PASSAGES, read_table
from rskd.storage import Store

_MOST_BYTES = 8_000_000  # in the page, of all distillations


def newest_passages(root: Store, names: Iterable[str]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Passages by distillation, for the first of `names` that fit into a page, and why others could not be read."""
    found: dict[str, dict[str, Any]] = {}
    notes: list[str] = []
    size = 0
    for name in names:
        try:
            passages = _read(root.child(name))
        except OutputError as error:
            notes.append(str(error))
            continue
        if passages is None:
            continue
        size += len(json.dumps(passages, separators=(",", ":")))
        if found and size > _MOST_BYTES:
            break
        found[name] = passages
    return found, notes


def _read(home: Store) -> dict[str, Any] | None:
    """`strings`, which all texts are numbers of; `windows`; and each model's values, position by position."""
    evaluation = records.read(home, "evaluation.json")
    data = read_table(home, PASSAGES, evaluation) if evaluation else None
    if data is None:
        return None
    models = from_parquet(data)
    strings: dict[str, int] = {}

    def numbers(texts: Iterable[str]) -> list[int]:
        return [strings.setdefault(text, len(strings)) for text in texts]

    first = next(iter(models.values()))
    return {
        "windows": first.window.tolist(),
        "tokens": numbers(first.token),
        "models": {name: _of_model(values, numbers) for name, values in models.items()},
        "strings": list(strings),
    }


def _of_model(values: TokenValues, numbers: Any) -> dict[str, Any]:
    """Nats and shares with three digits after the point; the likeliest tokens of all positions in one list."""
    return {
        "kl": np.round(values.kl_to_teacher.astype(float), 3).tolist(),
        "probability": np.round(values.probability.astype(float), 3).tolist(),
        "likeliest": numbers(text for likeliest in values.likeliest for text in likeliest),
        "probabilities": np.round(values.probabilities.astype(float), 3).flatten().tolist(),
    }
