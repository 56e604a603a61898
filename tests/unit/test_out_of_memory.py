"""No memory left is one line that names the key to lower."""

import pytest
import torch

from rskd.errors import ConfigError, RskdError
from rskd.out_of_memory import explain_out_of_memory, out_of_memory_explained


class WrappedError(Exception):
    """As Ray's, which has its cause in a field."""

    def __init__(self, cause: Exception):
        super().__init__(f"task failed: {type(cause).__name__}")
        self.cause = cause


@pytest.mark.parametrize(
    ("error", "place"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "the GPU"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), "the GPU"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
            "the machine",
        ),
        (MemoryError(), "the machine"),
        (WrappedError(WrappedError(torch.OutOfMemoryError("CUDA out of memory"))), "the GPU"),
        (RuntimeError("Worker exited: task was killed due to the node running low on memory."), "the machine"),
    ],
)
def test_it_is_a_wrong_configuration(error: Exception, place: str):
    with pytest.raises(ConfigError) as raised, out_of_memory_explained("lower train.micro_batch (now 8)"):
        raise error
    assert str(raised.value) == f"{place} has no memory left: lower train.micro_batch (now 8), and run it again"


@pytest.mark.parametrize("error", [ValueError("shapes"), RskdError("CUDA out of memory, they say"), KeyError("memory")])
def test_anything_else_passes(error: Exception):
    assert explain_out_of_memory(error, "") is None
    with pytest.raises(type(error)), out_of_memory_explained(""):
        raise error


def test_torch_really_says_so_on_the_cpu():
    with (
        pytest.raises(ConfigError, match="the machine has no memory left: lower it"),
        out_of_memory_explained("lower it"),
    ):
        torch.empty(2**60)
