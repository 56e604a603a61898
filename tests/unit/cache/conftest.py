from dataclasses import dataclass

import pytest
from made_caches import write_cache

from rskd.cache.codec import PartData


@dataclass(frozen=True)
class Cache:
    uri: str
    data: list[PartData]  # by part


@pytest.fixture
def cache(tmp_path) -> Cache:
    """A finished cache of `made.corpus()`."""
    uri = str(tmp_path / "cache")
    return Cache(uri, write_cache(uri))
