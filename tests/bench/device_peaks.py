"""What a device could do at best: dense bf16 FLOP/s and bytes/s of its memory, for MFU and share of the roofline.

From the vendor's datasheets (NVIDIA: A100, H100, H200, L4, L40S, Ada, HGX B200), without structured sparsity, products
of bf16 summed in float32. A device that is not in the table, or a slice of one (MIG), is measured: the fastest of a few
large products and copies. Such a peak is what is reached and not what is possible, and is labelled so.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

_DATASHEETS = {  # the name by which torch knows the device: TFLOP/s, TB/s
    "NVIDIA A100-SXM4-40GB": (312, 1.555),
    "NVIDIA A100-SXM4-80GB": (312, 2.039),
    "NVIDIA A100-PCIE-40GB": (312, 1.555),
    "NVIDIA A100 80GB PCIe": (312, 1.935),
    "NVIDIA H100 80GB HBM3": (989, 3.35),  # SXM
    "NVIDIA H100 PCIe": (756, 2.0),
    "NVIDIA H100 NVL": (835, 3.9),
    "NVIDIA H200": (989, 4.8),
    "NVIDIA H200 NVL": (835, 4.8),
    "NVIDIA B200": (2250, 8.0),
    "NVIDIA L4": (121, 0.3),
    "NVIDIA L40S": (362, 0.864),
    "NVIDIA GeForce RTX 4090": (165, 1.008),
}
_TRIES = 10


@dataclass(frozen=True)
class Peak:
    """At most so many FLOP and bytes a second; `source` says by whose word."""

    flops_per_s: float
    bytes_per_s: float
    source: str

    def least_seconds(self, *kernels: tuple[float, float]) -> float:
        """The roofline of work in turn, each part (FLOP, bytes): the longer of computing it and of moving it."""
        return sum(max(flops / self.flops_per_s, moved / self.bytes_per_s) for flops, moved in kernels)


def device_peak(device: torch.device) -> Peak:
    """The datasheet's, or what a few products and copies reach."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    if name in _DATASHEETS:
        teraflops, terabytes = _DATASHEETS[name]
        return Peak(teraflops * 1e12, terabytes * 1e12, "datasheet, dense bf16")
    return _measured(device)


def _measured(device: torch.device) -> Peak:
    size, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (512, torch.float32)
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(left)
    multiply = _fastest(lambda: torch.mm(left, right, out=product), device)
    source = torch.empty(size * size * 8, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = _fastest(lambda: target.copy_(source), device)
    return Peak(
        2 * size**3 / multiply, 2 * source.numel() / copy, f"measured here, {str(dtype).removeprefix('torch.')}"
    )


def _fastest(run, device: torch.device) -> float:
    seconds = []
    for _ in range(_TRIES):
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return min(seconds)
