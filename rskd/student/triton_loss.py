"""A Triton kernel for a chunk of logits: online log-sum-exp, gradients in the logits' memory, the scatter fused.

    logits ─► pass 1: max and sum of exponentials ─► lse ─► loss
           └► pass 2: (Σc)·softmax over the row ──► its K target entries again, less c, from logits kept in registers

One program a row reads the logits twice and writes them once, in their dtype; sums are in float32. Repeated ids are
merged beforehand, so the scatter needs no atomics and each gradient is rounded once. The readable twin is
`fused_loss.to_gradients`. With TRITON_INTERPRET=1 the kernel runs on a CPU, slowly.

Shapes: R tokens of a chunk, V vocabulary, K target entries.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from rskd.student.fused_loss import Target

try:
    import triton
    import triton.language as tl
except ImportError:  # CPU builds of torch come without
    triton = None

MAX_BLOCK = 16384  # logits that a program holds in registers
NUM_WARPS = 32


def to_gradients(logits: Tensor, target: Target, softcap: float | None) -> Tensor:
    """Losses, float32 [R], of `logits` [R, V] in any floating dtype; the logits become (Σc)·softmax - c (paper, Eq. 4).

    Rows of the logits may be any distance apart. The target has sparse entries alone.
    """
    assert triton is not None
    assert target.is_sparse
    losses = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    num_unique = target.ids.shape[1]
    _compiled()[(len(logits),)](
        logits,
        logits.stride(0),
        target.ids.contiguous(),
        target.coefficients.contiguous(),
        losses,
        logits.shape[1],
        num_unique,
        softcap or 1.0,
        has_softcap=softcap is not None,
        block_v=min(triton.next_power_of_2(logits.shape[1]), MAX_BLOCK),
        block_k=triton.next_power_of_2(max(num_unique, 1)),
        num_warps=NUM_WARPS,
    )
    return losses


def why_not(device: torch.device) -> str | None:
    """What keeps the kernel from running on a device, with the fix; None where it runs."""
    if triton is None:
        return "triton is not installed: pip install triton, or use impl='chunked'"
    if device.type != "cuda" and not triton.knobs.runtime.interpret:  # pyright: ignore[reportAttributeAccessIssue]
        return (
            f"hidden is on {device.type}, the kernel needs a GPU: use impl='chunked' (or TRITON_INTERPRET=1, to test)"
        )
    return None


@cache
def _compiled() -> Any:
    """On first use, since nothing is to happen at import."""
    assert triton is not None
    return triton.jit(_kernel)


def _kernel(
    logits,
    stride,
    ids,
    coefficients,
    losses,
    vocab_size,
    num_unique,
    softcap,
    has_softcap: tl.constexpr,
    block_v: tl.constexpr,
    block_k: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    ids += row * num_unique
    coefficients += row * num_unique

    entry_K = tl.arange(0, block_k)
    real_K = entry_K < num_unique
    id_K = tl.load(ids + entry_K, mask=real_K, other=0)
    c_K = tl.load(coefficients + entry_K, mask=real_K, other=0.0)
    merged_K = tl.zeros([block_k], dtype=tl.float32)  # Σ of the coefficients of equal ids
    for entry in range(num_unique):
        merged_K += tl.where(id_K == tl.load(ids + entry), tl.load(coefficients + entry), 0.0)
    mass = tl.sum(c_K, axis=0)
    z_K = tl.load(logits + id_K, mask=real_K, other=0.0).to(tl.float32)
    slope_K = tl.full([block_k], 1.0, dtype=tl.float32)
    if has_softcap:
        tanh_K = 2 * tl.sigmoid(2 * z_K / softcap) - 1
        z_K = softcap * tanh_K
        slope_K = 1 - tanh_K * tanh_K

    highest = -float("inf")
    total = 0.0
    for start in range(0, vocab_size, block_v):
        v_V = start + tl.arange(0, block_v)
        z_V = tl.load(logits + v_V, mask=v_V < vocab_size, other=0.0).to(tl.float32)
        if has_softcap:
            z_V = softcap * (2 * tl.sigmoid(2 * z_V / softcap) - 1)
        z_V = tl.where(v_V < vocab_size, z_V, -float("inf"))
        higher = tl.maximum(highest, tl.max(z_V, axis=0))
        total = total * tl.exp(highest - higher) + tl.sum(tl.exp(z_V - higher), axis=0)
        highest = higher
    lse = highest + tl.log(total)
    tl.store(losses + row, tl.sum(tl.where(real_K, c_K * (lse - z_K), 0.0), axis=0))

    for start in range(0, vocab_size, block_v):
        v_V = start + tl.arange(0, block_v)
        z_V = tl.load(logits + v_V, mask=v_V < vocab_size, other=0.0).to(tl.float32)
        if has_softcap:
            tanh_V = 2 * tl.sigmoid(2 * z_V / softcap) - 1
            g_V = mass * tl.exp(softcap * tanh_V - lse) * (1 - tanh_V * tanh_V)
        else:
            g_V = mass * tl.exp(z_V - lse)
        tl.store(logits + v_V, g_V, mask=v_V < vocab_size)
    tl.debug_barrier()  # the row is written before its target entries are written again
    tl.store(logits + id_K, (mass * tl.exp(z_K - lse) - merged_K) * slope_K, mask=real_K)
