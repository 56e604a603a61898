"""Memory of models that nobody holds any more."""

import gc
from collections.abc import Iterator
from typing import TypeVar

import torch

Update = TypeVar("Update")


def release_memory() -> None:
    """Free what dropped models leave in reference cycles, and the GPU memory that torch keeps for later."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def released_after(work: Iterator[Update]) -> Iterator[Update]:
    """What `work` yields; the memory of the models that it has loaded is released when it ends."""
    try:
        yield from work
    finally:
        release_memory()
