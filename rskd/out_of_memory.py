"""No memory left is one line that names the key to lower, wherever it is met: on the GPU, or on the machine.

Who says so: torch (its own error, or a text of its CPU allocator), Python, or Ray, which ends a worker for it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rskd.errors import ConfigError, RskdError

_IN_TEXT = (
    "CUDA out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "running low on memory",  # Ray
)


@contextmanager
def out_of_memory_explained(remedy: str) -> Iterator[None]:
    """Within it, no memory left is a ConfigError with the `remedy`; anything else passes."""
    try:
        yield
    except Exception as error:
        explained = explain_out_of_memory(error, remedy)
        if explained is None:
            raise
        raise explained from error


def explain_out_of_memory(error: BaseException, remedy: str) -> ConfigError | None:
    """What to say where work raised `error`; None unless it, or what is behind it, is that memory ran out."""
    found, seen = error, set[int]()
    while found is not None and id(found) not in seen:
        if isinstance(found, RskdError):
            return None
        place = _place(found)
        if place is not None:
            return ConfigError(f"{place} has no memory left: {remedy}, and run it again")
        seen.add(id(found))
        behind = getattr(found, "cause", None)  # ray.exceptions.RayTaskError
        found = behind if isinstance(behind, BaseException) else found.__cause__
    return None


def _place(error: BaseException) -> str | None:
    """Which memory it says is full."""
    torch, ray = sys.modules.get("torch"), sys.modules.get("ray")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return "the GPU"
    if ray is not None and isinstance(error, ray.exceptions.OutOfMemoryError):
        return "the machine"
    said = next((text for text in _IN_TEXT if text in str(error)), "")
    if said.startswith("CU"):
        return "the GPU"
    return "the machine" if said or isinstance(error, MemoryError) else None
