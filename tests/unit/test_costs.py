"""Costs: what is reserved times wall seconds, and the money of it."""

import pytest

from rskd.config import CostsConfig
from rskd.costs import HEAD, Costs, Reserved, rows, total

PRICES = CostsConfig(price_per_gpu_hour=3.6, price_per_core_hour=1.2)


def test_workers_reserve_their_threads_and_gpus():
    assert Reserved.by_workers(2, threads=3, gpus=0) == Reserved(cores=6, gpus=0)
    assert Reserved.by_workers(4, threads=8, gpus=0.5) == Reserved(32, 2)
    assert Reserved.by_workers(0, threads=3, gpus=0) == Reserved(3)  # the driver's process


def test_two_workers_of_three_threads_for_ten_seconds():
    found = Reserved(cores=6).costs(10.0, tokens=640, bytes_written=7).priced(PRICES)
    assert found == Costs(640, 10.0, core_seconds=60.0, gpu_seconds=0.0, bytes_written=7, money=pytest.approx(0.02))


def test_money_of_cores_and_gpus():
    found = Reserved(cores=8, gpus=2).costs(1800.0)
    assert found.priced(PRICES).money == pytest.approx(4 * 1.2 + 1 * 3.6)
    assert found.priced(CostsConfig(price_per_gpu_hour=3.6, price_per_core_hour=0)).money == pytest.approx(3.6)


@pytest.mark.parametrize("prices", [{}, {"price_per_gpu_hour": 3.6}, {"price_per_core_hour": 1.2}])
def test_no_money_where_something_that_was_used_has_no_price(prices: dict[str, float]):
    used = Reserved(cores=1, gpus=1).costs(1.0)
    assert used.priced(CostsConfig(**prices)).money is None


def test_what_was_not_used_needs_no_price():
    assert Reserved(cores=1).costs(3600.0).priced(CostsConfig(price_per_core_hour=0.5)).money == 0.5


def test_a_sum_forgets_the_money_until_it_is_priced():
    one, other = Costs(1, 2.0, 3.0, 4.0, 5, money=9.0), Costs(10, 20.0, 30.0, 40.0, 50)
    assert one + other == Costs(11, 22.0, 33.0, 44.0, 55, money=None)
    assert total([one, other], PRICES).money == pytest.approx(33 / 3600 * 1.2 + 44 / 3600 * 3.6)
    assert total([], CostsConfig()) == Costs(money=0.0)


def test_the_table_has_a_row_for_each_stage_and_their_total():
    stages = {"pack": Costs(1000, 30.0, 60.0, 0.0, 2**20), "train ce": Costs(500, 1800.0, 3600.0, 7200.0, 24)}
    assert len(HEAD) == 7
    assert rows(stages, PRICES) == [
        ["pack", "1,000", "30.0", "60.0", "0.0", "1,048,576", "0.0200"],
        ["train ce", "500", "1,800.0", "3,600.0", "7,200.0", "24", "8.40"],
        ["total", "1,500", "1,830.0", "3,660.0", "7,200.0", "1,048,600", "8.42"],
    ]
    unpriced = rows(stages, CostsConfig(price_per_core_hour=1.2))
    assert [row[-1] for row in unpriced] == ["0.0200", "–", "–"]
