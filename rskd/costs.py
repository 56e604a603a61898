"""What a stage costs: the cores and GPUs that it reserves, times its wall seconds, since that is what one pays for.

    Reserved(cores, gpus) × seconds ─► Costs of an attempt ─► + those of other attempts ─► priced ─► money
                                                   <home>/costs/<stage>.json, costs/<stage>/<student>.json

2 workers of 3 threads reserve 6 cores: 10 seconds of them are 60 core-seconds, and 0.02 at 1.2 a core-hour.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from rskd import records
from rskd.config import CostsConfig
from rskd.storage import Store

TOTAL = "total"
COSTS = ("seconds", "core_seconds", "gpu_seconds", "money")  # what time costs, under these names everywhere
FOLDER = "costs"  # below a distillation's, written by `rskd.jobs.at_work`
HEAD = ("stage", "tokens", "seconds", "core_seconds", "gpu_seconds", "bytes_written", "money")  # of a table
_SECONDS_PER_HOUR = 3600
_ORDER = ("pack", "cache", "train", "evaluate", "generate", "judge", "promote")


@dataclass(frozen=True)
class Costs:
    """Costs of a stage, or of several; `money` is in the currency of the prices, and None where one is missing."""

    tokens: int = 0  # positions that were packed, cached, trained on, evaluated on; tokens of answers
    seconds: float = 0.0  # wall time
    core_seconds: float = 0.0
    gpu_seconds: float = 0.0
    bytes_written: int = 0  # of the outputs, without checkpoints and manifests
    money: float | None = None

    def __add__(self, other: Costs) -> Costs:
        """The sum, which has no money until it is `priced`."""
        return Costs(
            self.tokens + other.tokens,
            self.seconds + other.seconds,
            self.core_seconds + other.core_seconds,
            self.gpu_seconds + other.gpu_seconds,
            self.bytes_written + other.bytes_written,
        )

    def priced(self, prices: CostsConfig) -> Costs:
        """The same with the money that it costs; None if something was used that has no price."""
        used = ((self.core_seconds, prices.price_per_core_hour), (self.gpu_seconds, prices.price_per_gpu_hour))
        money = 0.0
        for seconds, price in used:
            if seconds and price is None:
                return replace(self, money=None)
            money += seconds / _SECONDS_PER_HOUR * (price or 0.0)
        return replace(self, money=money)


@dataclass(frozen=True)
class Reserved:
    """What a stage holds from its beginning to its end, whether it is busy or not."""

    cores: float
    gpus: float = 0.0

    @classmethod
    def by_workers(cls, workers: int, *, threads: int, gpus: float) -> Reserved:
        """Of so many workers with so much each; 0 of them are the driver's process, which works alone."""
        workers = max(1, workers)
        return cls(workers * threads, workers * gpus)

    def costs(self, seconds: float, *, tokens: int = 0, bytes_written: int = 0) -> Costs:
        """Costs of holding it for so many seconds, without the money."""
        return Costs(tokens, seconds, self.cores * seconds, self.gpus * seconds, bytes_written)


def recorded_costs(home: Store) -> dict[str, Costs]:
    """Costs of every stage of a distillation by its name, `train ce`, in the order in which stages run; not priced.

    Students that are no longer in the configuration were paid for, too.
    """
    folder = home.child(FOLDER)
    files = [
        (_ORDER.index(stage), file)
        for file in folder.sizes(recursive=True)
        if file.endswith(".json") and (stage := file.removesuffix(".json").split("/")[0]) in _ORDER
    ]
    found = {file.removesuffix(".json").replace("/", " "): records.read(folder, file) for _, file in sorted(files)}
    return {name: costs_in(record) for name, record in found.items() if record is not None}


def costs_in(record: Mapping[str, Any]) -> Costs:
    """The costs in a file of `FOLDER`."""
    return Costs(**{name: value for name, value in record.items() if name not in ("makes", "attempts")})


def total(costs: Iterable[Costs], prices: CostsConfig) -> Costs:
    """The sum of several stages, priced."""
    return sum(costs, Costs()).priced(prices)


def rows(costs: Mapping[str, Costs], prices: CostsConfig) -> list[list[str]]:
    """The cells of a table under HEAD: a row for each stage by its name, and their total."""
    priced = {name: found.priced(prices) for name, found in costs.items()}
    return [
        [
            name,
            f"{found.tokens:,}",
            *(f"{seconds:,.1f}" for seconds in (found.seconds, found.core_seconds, found.gpu_seconds)),
            f"{found.bytes_written:,}",
            _money(found.money),
        ]
        for name, found in (priced | {TOTAL: total(costs.values(), prices)}).items()
    ]


def _money(money: float | None) -> str:
    if money is None:
        return "–"
    return f"{money:,.2f}" if money >= 1 else f"{money:.4f}"
