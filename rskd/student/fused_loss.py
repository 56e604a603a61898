"""Output head and loss in one, chunk by chunk: the gradient is made in the forward pass, where the logits are.

    hidden ─► chunk of rows ─► logits ─► losses, and gradients in the logits' memory ─┬─► @ weight: grad_hidden
                                                                                      └─► @ hidden: grad_weight

No [N, V] tensor exists: beyond the inputs and their gradients there is one chunk of logits. A summed loss costs what
the plain one does, three matrix products. Losses a token cost a fourth: the gradient waits for the upstream's weights.

Shapes: N tokens, R tokens of a chunk, D hidden, V vocabulary, K target entries.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from rskd.output_head import OutputHead

CHUNK_BYTES_CPU = 32 * 2**20  # of float32 logits at once; malloc does not recycle more
CHUNK_BYTES_GPU = 512 * 2**20


class Target(NamedTuple):
    """The c of the loss Σ_v c_v (lse(z) - z_v): sparse entries and, for full KD, a share of a teacher's softmax.

    Constants: no gradient goes to them. Repeated ids add up.
    """

    ids: Tensor  # int64 [N, K]
    coefficients: Tensor  # float32 [N, K]
    teacher_logits: Tensor | None = None  # [N, V]
    teacher_coefficients: Tensor | None = None  # float32 [N]

    def rows(self, rows: slice) -> Target:
        """Those of some tokens."""
        return Target(*(None if part is None else part[rows] for part in self))  # pyright: ignore[reportArgumentType]

    def scaled(self, factors: Tensor) -> Target:
        """With the coefficients of each token times `factors` [N]."""
        dense = None if self.teacher_coefficients is None else self.teacher_coefficients * factors
        return Target(self.ids, self.coefficients * factors[:, None], self.teacher_logits, dense)

    def dense(self) -> Tensor | None:
        """The teacher's share of c, float32 [N, V]."""
        if self.teacher_logits is None or self.teacher_coefficients is None:
            return None
        return self.teacher_logits.float().softmax(-1) * self.teacher_coefficients[:, None]


def chunked_loss(hidden: Tensor, head: OutputHead, target: Target, *, summed: bool) -> Tensor:
    """Loss Σ_v c_v (lse(z) - z_v) of each token, [N], or its sum over them.

    `F.cross_entropy(head.logits(hidden), c, reduction="sum")` where c sums to 1 and softcap and vocabulary allow.

    `hidden` is [N, D]. Logits are made in the inputs' dtype (under autocast, in autocast's), the softmax in float32,
    the gradient of the head is added up over chunks in float32.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    return _ChunkedLoss.apply(
        hidden, head.weight, head.bias, head.softcap, target, dtype, summed, torch.is_grad_enabled()
    )  # pyright: ignore[reportReturnType]


def _to_gradients(logits: Tensor, target: Target) -> Tensor:
    """Losses [R] of `logits` [R, V], overwritten by their gradients (Σc)·softmax - c (paper, Eq. 4)."""
    logits.sub_(logits.amax(-1, keepdim=True))
    coefficients = target.coefficients.to(logits.dtype)
    picked = (coefficients * logits.gather(1, target.ids)).sum(-1)
    mass = coefficients.sum(-1)
    dense = target.dense()
    if dense is not None:
        picked += (dense * logits).sum(-1)
        mass += dense.sum(-1)
    total = logits.exp_().sum(-1)
    logits.mul_((mass / total)[:, None])
    logits.scatter_add_(1, target.ids, -coefficients)
    if dense is not None:
        logits.sub_(dense)
    return mass * total.log() - picked


class _ChunkedLoss(Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, softcap, target, dtype, summed, with_gradients):
        ctx.options = (softcap, dtype)
        ctx.summed = summed
        wanted = tuple(with_gradients and summed and needed for needed in ctx.needs_input_grad[:3])
        losses, ctx.gradients = _run((hidden, weight, bias), target, wanted, *ctx.options)
        if with_gradients and not summed:
            ctx.target = target
            ctx.save_for_backward(hidden, weight, bias)
        return losses.sum() if summed else losses

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        if ctx.summed:
            scaled = (None if gradient is None else gradient * grad_output for gradient in ctx.gradients)
        else:
            wanted = ctx.needs_input_grad[:3]
            _, scaled = _run(ctx.saved_tensors, ctx.target.scaled(grad_output), wanted, *ctx.options)
        return *scaled, None, None, None, None, None


def _run(
    inputs: tuple[Tensor, Tensor, Tensor | None],
    target: Target,
    wanted: tuple[bool, ...],
    softcap: float | None,
    dtype: torch.dtype,
) -> tuple[Tensor, list[Tensor | None]]:
    """Losses [N], and the gradients of their sum to those of hidden, weight and bias that are `wanted`."""
    hidden, weight, bias = (None if tensor is None else tensor.to(dtype) for tensor in inputs)
    assert hidden is not None
    assert weight is not None
    head = OutputHead(weight, bias, softcap)
    high = torch.promote_types(dtype, torch.float32)
    losses = torch.empty(len(hidden), dtype=high, device=hidden.device)
    grad_hidden = torch.empty_like(hidden) if wanted[0] else None
    grad_weight = torch.zeros_like(weight, dtype=high) if wanted[1] else None
    grad_bias = torch.zeros_like(weight[:, 0], dtype=high) if wanted[2] else None
    with torch.autocast(hidden.device.type, enabled=False):
        for rows in _chunks(len(hidden), len(weight), hidden.device):
            logits = head.logits(hidden[rows])
            slope = None if softcap is None else 1 - (logits / softcap) ** 2
            losses[rows] = _to_gradients(logits, target.rows(rows))
            grad_logits = logits if slope is None else logits.mul_(slope)
            if grad_bias is not None:
                grad_bias += grad_logits.sum(0)
            grad_logits = grad_logits.to(dtype)
            if grad_hidden is not None:
                torch.mm(grad_logits, weight, out=grad_hidden[rows])
            if grad_weight is not None:
                _add_product(grad_weight, grad_logits.T, hidden[rows])
    gradients = (grad_hidden, grad_weight, grad_bias)
    return losses, [None if g is None else g.to(tensor.dtype) for g, tensor in zip(gradients, inputs)]  # pyright: ignore


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, the sum in float32 also where the factors are narrower."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _chunks(num_tokens: int, vocab_size: int, device: torch.device) -> Iterator[slice]:
    budget = CHUNK_BYTES_CPU if device.type == "cpu" else CHUNK_BYTES_GPU
    size = max(1, budget // (torch.float32.itemsize * vocab_size))
    return (slice(start, start + size) for start in range(0, num_tokens, size))
