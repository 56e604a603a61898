import numpy as np
import pytest

from rskd import records
from rskd.errors import CorruptPartError
from rskd.storage import Store

CONTENT = {"name": "α/β", "parts": [{"rows": 3, "loss": 0.1}], "none": None}


def test_what_was_sealed_comes_back():
    assert records.unseal(records.seal(CONTENT), "x") == CONTENT


def test_the_order_of_keys_does_not_show():
    reversed_keys = dict(reversed(CONTENT.items()))
    assert records.seal(reversed_keys) == records.seal(CONTENT)
    assert records.digest({**CONTENT, "digest": "of before"}) == records.digest(CONTENT)


def test_any_changed_bit_is_seen():
    data = records.seal(CONTENT)
    for bit in np.random.default_rng(0).permutation(8 * len(data)).tolist():
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptPartError, match=r"^x is not what was written"):
            records.unseal(bytes(changed), "x")


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b'{"a":1}', records.seal(CONTENT)[:-1], records.seal(CONTENT) + b" "]
)
def test_anything_else_is_refused(data):
    with pytest.raises(CorruptPartError):
        records.unseal(data, "x")


def test_files(tmp_path):
    store = Store(str(tmp_path))
    assert records.read(store, "record.json") is None
    records.write(store, "record.json", CONTENT)
    assert records.read(store, "record.json") == CONTENT
