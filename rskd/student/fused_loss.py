"""Output head and loss in one, chunk by chunk: the gradient is made in the forward pass, where the logits are.

    hidden ─► chunk of rows ─► logits ─► losses, and gradients in the logits' memory ─┬─► @ weight: grad_hidden
                                         (tile by tile here, or triton_loss)          └─► @ hidden: grad_weight

No [N, V] tensor exists: beyond the inputs and their gradients there is one buffer of logits, used by all chunks. A
summed loss costs what the plain one does, three matrix products. Losses a token cost a fourth: the gradient waits for
the upstream's weights. Products are made in the inputs' dtype on a GPU and in float32 on a CPU, where narrower ones are
emulated; the softmax and the sum of the head's gradient over chunks are in float32.

Shapes: N tokens, R tokens of a chunk, D hidden, V vocabulary, K target entries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from rskd.models.output_head import OutputHead

TILE_BYTES_CPU = 2**21  # float32 values of a tile: passes over it stay in the cache
TILE_BYTES_GPU = 2**27


class LossTarget(Protocol):
    """What N tokens are to learn, and by which loss. Constants: no gradient goes to them."""

    def rows(self, rows: slice) -> Self:
        """Those of some tokens."""
        ...

    def scaled(self, factors: Tensor) -> Self:
        """With the loss of each token times `factors` [N]."""
        ...

    def losses(self, log_q: Tensor) -> Tensor:
        """Losses [N] of a student's log-probabilities [N, V], for autograd."""
        ...


class Target(NamedTuple):
    """The c of the loss Σ_v c_v (lse(z) - z_v): sparse entries, and shares of other kinds.

    A teacher's softmax, for full KD. A share that all ids have alike. A ghost token, which stands for all ids but
    `ghost_ids` and whose z is their log-sum-exp. Repeated ids add up.
    """

    ids: Tensor  # int64 [N, K]
    coefficients: Tensor  # float32 [N, K]
    teacher_logits: Tensor | None = None  # [N, V]
    teacher_coefficients: Tensor | None = None  # float32 [N]
    uniform_coefficients: Tensor | None = None  # float32 [N], over all ids
    ghost_ids: Tensor | None = None  # int64 [N, K']
    ghost_coefficients: Tensor | None = None  # float32 [N]

    @property
    def is_sparse(self) -> bool:
        """Whether there are entries and nothing else."""
        return self.teacher_logits is None and self.uniform_coefficients is None and self.ghost_ids is None

    def rows(self, rows: slice) -> Target:
        return Target(*(None if part is None else part[rows] for part in self))  # pyright: ignore[reportArgumentType]

    def scaled(self, factors: Tensor) -> Target:
        teacher, uniform, ghost = (
            None if part is None else part * factors
            for part in (self.teacher_coefficients, self.uniform_coefficients, self.ghost_coefficients)
        )
        return self._replace(
            coefficients=self.coefficients * factors[:, None],
            teacher_coefficients=teacher,
            uniform_coefficients=uniform,
            ghost_coefficients=ghost,
        )

    def with_entry(self, ids: Tensor, coefficients: Tensor) -> Target:
        """With one more entry for each token, both [N]."""
        return self._replace(
            ids=torch.cat([self.ids, ids[:, None]], dim=1),
            coefficients=torch.cat([self.coefficients, coefficients[:, None]], dim=1),
        )

    def losses(self, log_q: Tensor) -> Tensor:
        losses = -(self.coefficients * log_q.gather(1, self.ids)).sum(-1)
        dense = self.dense()
        if dense is not None:
            losses = losses - (dense * log_q).sum(-1)
        if self.uniform_coefficients is not None:
            losses = losses - self.uniform_coefficients * log_q.mean(-1)
        if self.ghost_ids is not None and self.ghost_coefficients is not None:
            losses = losses - self.ghost_coefficients * log_q.scatter(1, self.ghost_ids, -torch.inf).logsumexp(-1)
        return losses

    def dense(self) -> Tensor | None:
        """The teacher's share of c, float32 [N, V]."""
        if self.teacher_logits is None or self.teacher_coefficients is None:
            return None
        return self.teacher_logits.float().softmax(-1) * self.teacher_coefficients[:, None]


ToGradients = Callable[[Tensor, Any, float | None], Tensor]
"""Losses [R] of logits [R, V] before the soft-cap, which are overwritten by their gradients; the second argument is the
kind of LossTarget that the kernel is for."""


def to_gradients(logits: Tensor, target: Target, softcap: float | None) -> Tensor:
    """Losses [R], float32 at least, of `logits` [R, V]; the logits become (Σc)·softmax - c (paper, Eq. 4)."""
    return torch.cat([_tile_to_gradients(logits[tile], target.rows(tile), softcap) for tile in tiles_of(logits)])


def tiles_of(logits: Tensor) -> Iterator[slice]:
    """Slices of the rows of `logits` [R, V], each small enough for several passes over it."""
    num_bytes = TILE_BYTES_CPU if logits.device.type == "cpu" else TILE_BYTES_GPU
    return _slices(len(logits), max(1, num_bytes // (torch.float32.itemsize * logits.shape[1])))


def _tile_to_gradients(logits: Tensor, target: Target, softcap: float | None) -> Tensor:
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    slope = None
    if softcap is not None:
        z.div_(softcap).tanh_()
        slope = 1 - z**2
        z.mul_(softcap)
    z.sub_(z.amax(-1, keepdim=True))
    coefficients = target.coefficients.to(z.dtype)
    picked = (coefficients * z.gather(1, target.ids)).sum(-1)
    mass = coefficients.sum(-1)
    dense = target.dense()
    if dense is not None:
        picked += (dense * z).sum(-1)
        mass += dense.sum(-1)
    if target.uniform_coefficients is not None:
        picked += target.uniform_coefficients * z.mean(-1)
        mass += target.uniform_coefficients
    total = z.exp_().sum(-1)
    if target.ghost_ids is None or target.ghost_coefficients is None:
        z.mul_((mass / total)[:, None])
    else:
        mass += target.ghost_coefficients
        picked += _to_ghost_gradients(z, target.ghost_ids, target.ghost_coefficients, mass / total)
    z.scatter_add_(1, target.ids, -coefficients)
    if dense is not None:
        z.sub_(dense)
    if target.uniform_coefficients is not None:
        z.sub_((target.uniform_coefficients / z.shape[1])[:, None])
    if slope is not None:
        z.mul_(slope)
    if z is not logits:
        logits.copy_(z)
    return mass * total.log() - picked


def _to_ghost_gradients(exps: Tensor, ids: Tensor, coefficients: Tensor, scale: Tensor) -> Tensor:
    """coefficients·z of the ghost token, [R]; `exps` [R, V] times `scale` less what the ghost token takes (paper, A.5).

    The others are summed without the ids: 1 - Σp would be what rounding leaves of it.
    """
    listed = exps.gather(1, ids)
    others = exps.scatter_(1, ids, 0).sum(-1).clamp_(min=torch.finfo(exps.dtype).tiny)
    exps.mul_((scale - coefficients / others)[:, None])
    exps.scatter_(1, ids, listed * scale[:, None])
    return coefficients * others.log()


def chunked_loss(
    hidden: Tensor,
    head: OutputHead,
    target: LossTarget,
    *,
    summed: bool,
    vocab_size: int | None = None,
    kernel: ToGradients = to_gradients,
) -> Tensor:
    """Loss of each token, [N], or its sum over them: `target.losses(head.logits(hidden, vocab_size).log_softmax(-1))`.

    `hidden` is [N, D]; `kernel` is the one for this kind of target. Under autocast the inputs count as of its dtype.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    options = _Options(
        head.softcap, vocab_size or len(head.weight), torch.promote_types(dtype, torch.float32), dtype, kernel
    )
    apply: Callable[..., Tensor] = _ChunkedLoss.apply  # pyright: ignore[reportAssignmentType]
    if torch.compiler.is_compiling():
        apply = torch.compiler.disable(apply)  # pyright: ignore[reportAssignmentType]
    return apply(hidden, head.weight, head.bias, target, options, summed, torch.is_grad_enabled())


class _Options(NamedTuple):
    softcap: float | None
    vocab_size: int
    high: torch.dtype  # of sums
    dtype: torch.dtype  # of the inputs
    kernel: ToGradients

    def product_dtype(self, device: torch.device) -> torch.dtype:
        return self.high if device.type == "cpu" else self.dtype


class _ChunkedLoss(Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, target, options, summed, with_gradients):
        ctx.options = options
        ctx.summed = summed
        wanted = tuple(with_gradients and summed and needed for needed in ctx.needs_input_grad[:3])
        losses, ctx.gradients = _run((hidden, weight, bias), target, wanted, options)
        if with_gradients and not summed:
            ctx.target = target
            ctx.save_for_backward(hidden, weight, bias)
        return losses.sum() if summed else losses

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        if not ctx.summed:
            _, gradients = _run(
                ctx.saved_tensors, ctx.target.scaled(grad_output), ctx.needs_input_grad[:3], ctx.options
            )
        elif ctx.gradients is None:
            raise RuntimeError("the loss's gradients went to the first backward: call that with retain_graph=True")
        elif torch._C._autograd._get_current_graph_task_keep_graph():  # pyright: ignore[reportAttributeAccessIssue]
            gradients = [None if gradient is None else gradient * grad_output for gradient in ctx.gradients]
        else:
            gradients, ctx.gradients = ctx.gradients, None
            _scale(gradients, grad_output)
        return *gradients, None, None, None, None


def _scale(gradients: list[Tensor | None], factor: Tensor) -> None:
    """In place, so that autograd can hand on the tensors themselves; where that is free to know, not by 1."""
    if factor.device.type == "cpu" and factor == 1:
        return
    for gradient in gradients:
        if gradient is not None:
            gradient.mul_(factor)


def _run(
    inputs: tuple[Tensor, Tensor, Tensor | None], target: LossTarget, wanted: tuple[bool, ...], options: _Options
) -> tuple[Tensor, list[Tensor | None]]:
    """Losses [N], and the gradients of their sum to those of hidden, weight and bias that are `wanted`."""
    hidden, weight, _ = inputs
    make = torch.empty_like if len(hidden) else torch.zeros_like  # the first chunk writes, the others add
    gradients = [
        make(hidden) if wanted[0] else None,
        make(weight, dtype=options.high) if wanted[1] else None,
        torch.zeros_like(weight[:, 0], dtype=options.high) if wanted[2] else None,
    ]
    with torch.autocast(hidden.device.type, enabled=False):
        losses = _run_chunks(inputs, target, gradients, options)
    return losses, [None if g is None else g.to(tensor.dtype) for g, tensor in zip(gradients, inputs)]  # pyright: ignore


def _run_chunks(
    inputs: tuple[Tensor, Tensor, Tensor | None],
    target: LossTarget,
    gradients: list[Tensor | None],
    options: _Options,
) -> Tensor:
    """Losses [N]; fills `gradients`, those of hidden in its dtype, of weight and bias in float32."""
    dtype = options.product_dtype(inputs[0].device)
    hidden = inputs[0]
    weight, bias = (None if tensor is None else tensor[: options.vocab_size].to(dtype) for tensor in inputs[1:])
    assert weight is not None
    grad_hidden, grad_weight, grad_bias = gradients
    if grad_weight is not None:
        grad_weight[len(weight) :] = 0
        grad_weight = grad_weight[: len(weight)]
    losses = torch.empty(len(hidden), dtype=options.high, device=hidden.device)
    chunk_rows = _chunk_rows(len(hidden), hidden.shape[1], hidden.device)
    buffer = _logits_buffer(chunk_rows, weight)
    for rows in _slices(len(hidden), chunk_rows):
        hidden_RD = hidden[rows].to(dtype)
        logits = buffer[: len(hidden_RD)]
        if bias is None:
            torch.mm(hidden_RD, weight.T, out=logits)
        else:
            torch.addmm(bias, hidden_RD, weight.T, out=logits)
        losses[rows] = options.kernel(logits, target.rows(rows), options.softcap)
        if grad_bias is not None:
            grad_bias[: len(weight)] += logits.sum(0, dtype=grad_bias.dtype)
        if grad_hidden is not None and grad_hidden.dtype == dtype:
            torch.mm(logits, weight, out=grad_hidden[rows])
        elif grad_hidden is not None:
            grad_hidden[rows] = logits @ weight
        if grad_weight is not None:
            _add_product(grad_weight, logits.T, hidden_RD, beta=int(rows.start > 0))
    return losses


def _add_product(total: Tensor, left: Tensor, right: Tensor, *, beta: int) -> None:
    """total = beta·total + left @ right, the sum in float32 also where the factors are narrower."""
    if total.dtype == left.dtype:
        total.addmm_(left, right, beta=beta)
    elif _adds_products_in_float32(total.device):
        torch.addmm(total, left, right, out_dtype=total.dtype, beta=beta, out=total)
    elif beta:
        total += left @ right
    else:
        total.copy_(left @ right)


@cache
def _adds_products_in_float32(device: torch.device) -> bool:
    """Whether this torch adds a product of narrower factors to a float32 matrix on the device (2.9 does not)."""
    total = torch.zeros(16, 16, device=device)
    try:
        torch.addmm(total, total.bfloat16(), total.bfloat16(), out_dtype=total.dtype, out=total)
    except RuntimeError:
        return False
    return True


def _chunk_rows(num_tokens: int, hidden_size: int, device: torch.device) -> int:
    """Tokens of a chunk: logits of half the size of the head's gradient, within what keeps matrix products efficient.

    Every chunk reads the head twice and its gradient once, whatever its size: so chunks are of equal size.
    """
    least, most = (64, 512) if device.type == "cpu" else (512, 4096)
    num_chunks = max(1, -(-num_tokens // max(least, min(most, hidden_size // 2))))
    return max(1, -(-num_tokens // num_chunks))


def _logits_buffer(num_rows: int, weight: Tensor) -> Tensor:
    """Memory for logits [R, V], rows aligned, but not a multiple of a page apart: those would share cache sets."""
    stride = -(-len(weight) // 16) * 16
    if stride * weight.itemsize % 4096 == 0:
        stride += 32
    return weight.new_empty(num_rows, stride)[:, : len(weight)]


def _slices(num: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, num, size))
