"""Settings as a reader of a page says them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def objective_in_words(objective: Mapping[str, Any], sampling: Mapping[str, Any] | None) -> tuple[str, str]:
    """What a student learned from: its loss, and its targets; `sampling` is that of the cache that it read, if any."""
    if objective["kind"] == "ce":
        return "cross-entropy", "labels"
    loss = "KD" if objective["divergence"] == "forward" else f"KD ({objective['divergence']})"
    weight = objective["ce_weight"]
    mixture = f"{weight:g}·CE + {1 - weight:g}·{loss}" if weight else loss
    if sampling is None:
        return mixture, "teacher online"
    residual = "" if objective["residual"] == "none" else f", rest: {objective['residual']}"
    return mixture, sampling_in_words(sampling) + residual


def sampling_in_words(sampling: Mapping[str, Any]) -> str:
    """Method and size of a cache."""
    if sampling["method"] in ("top_k", "top_p"):
        mass = f", p = {sampling['p']:g}" if sampling["method"] == "top_p" else ""
        return f"{sampling['method']}, k = {sampling['k']}{mass}"
    temperature = f", t = {sampling['temperature']:g}" if sampling["temperature"] != 1 else ""
    return f"{sampling['method']}, N = {sampling['num_samples']}{temperature}"
