"""What our students of each method came to, in the paper's units."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rskd.cache.reader import LogitCache
from rskd.config import DistillConfig
from rskd.evaluation.downstream import headline, mean_score
from rskd.evaluation.language_modeling import pct_ce_to_fullkd
from rskd.reproduction.beside_paper import Ours, cache_facts
from rskd.reproduction.cells import Records
from rskd.reproduction.methods import METHODS
from rskd.reproduction.statistics import over_seeds


def summarise(config: DistillConfig, records: Records) -> dict[str, Ours]:
    """Our figures of each method that has a cell."""
    by_method: dict[str, dict[int, Mapping[str, Any]]] = {}
    for (method, seed), record in records.items():
        by_method.setdefault(method, {})[seed] = record
    ends = {name: _losses(by_method.get(name, {})) for name in ("ce", "full_kd")}
    caches = {cache: cache_facts(LogitCache.open(config.cache_uri(cache)).manifest) for cache in config.cache_samplings}
    return {
        method: _ours(method, seeds, ends, caches.get(METHODS[method].cache or "", (None, None)))
        for method, seeds in by_method.items()
    }


def _losses(seeds: Mapping[int, Mapping[str, Any]]) -> dict[int, float]:
    return {seed: record["metrics"]["lm_loss"] for seed, record in seeds.items() if "metrics" in record}


def _ours(
    method: str,
    seeds: Mapping[int, Mapping[str, Any]],
    ends: Mapping[str, Mapping[int, float]],
    cache: tuple[float | None, float | None],
) -> Ours:
    converged = {seed: record["metrics"] for seed, record in seeds.items() if "metrics" in record}
    tasks = [record["tasks"] for record in seeds.values() if record.get("tasks")]
    values: dict[str, list[float]] = {
        "lm_loss": [metrics["lm_loss"] for metrics in converged.values()],
        "ece": [100 * metrics["ece"] for metrics in converged.values()],
        "acceptance": [100 * metrics["acceptance"] for metrics in converged.values()],
        "pct": [
            pct_ce_to_fullkd(metrics["lm_loss"], ce=ends["ce"][seed], full_kd=ends["full_kd"][seed])
            for seed, metrics in converged.items()
            if seed in ends["ce"] and seed in ends["full_kd"]
        ],
        "score": [100 * score for each in tasks if (score := mean_score(each)) is not None],
        **{
            task: [100 * value for each in tasks if (value := headline(each[task])) is not None]
            for task in (tasks[0] if tasks else ())
        },
    }
    return Ours(
        method,
        len(seeds),
        len(seeds) - len(converged),
        {name: over_seeds(found) for name, found in values.items() if found},
        next((record["parameters"] for record in seeds.values() if "parameters" in record), None),
        *cache,
    )
