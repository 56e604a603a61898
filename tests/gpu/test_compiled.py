"""Compiled decoder blocks on the device compute what plain ones do."""

from collections.abc import Iterator

import pytest
from device_students import losses, one_rank

pytestmark = pytest.mark.gpu
HELD = {
    "plain": {},
    "sharded and checkpointing": {"sharding": "full", "activation_checkpointing": "blocks"},
}


@pytest.fixture(scope="module", autouse=True)
def _rank() -> Iterator[None]:
    with one_rank():
        yield


@pytest.mark.parametrize("name", HELD)
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("bfloat16", 1e-2)])
def test_losses_are_those_of_plain_blocks(name, precision, tolerance):
    found = losses(precision=precision, compile=True, **HELD[name])
    assert found == pytest.approx(losses(precision=precision), rel=tolerance)
