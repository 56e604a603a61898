"""The divergences of the paper's 6.3 beside forward KL, of a student's probabilities q from a teacher's t.

    reverse          Σ_v q_v (log q_v - log t_v)
    forward_reverse  Σ_v t_v (log t_v - log q_v), less the entropy of t, and the above
    mse              Σ_v (q_v - t_v)²
    l1               Σ_v |q_v - t_v|

Autograd makes their gradients tile by tile, as `fused_loss` makes those of forward KL in closed form: no [N, V] tensor
is kept. The gradient of mse is linear in t, so unbiased targets leave it unbiased; those of reverse and l1 are not.

Shapes: N tokens, R tokens of a chunk, V vocabulary.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rskd.student.fused_loss import Target, tiles_of

Divergence = Literal["forward", "reverse", "forward_reverse", "mse", "l1"]
UNLISTED_PROBABILITY = 1e-6  # of an id that sparse targets leave out, under the logarithm of reverse KL


class DivergenceTarget(NamedTuple):
    """weight·D(t, q) of a divergence D, and a forward loss beside it: that of the labels, or of forward KL."""

    divergence: Divergence
    teacher: Target  # t
    weights: Tensor  # float32 [N]
    beside: Target

    def rows(self, rows: slice) -> DivergenceTarget:
        return DivergenceTarget(self.divergence, self.teacher.rows(rows), self.weights[rows], self.beside.rows(rows))

    def scaled(self, factors: Tensor) -> DivergenceTarget:
        return self._replace(weights=self.weights * factors, beside=self.beside.scaled(factors))

    def losses(self, log_q: Tensor) -> Tensor:
        return self.weights * self._distance(log_q) + self.beside.losses(log_q)

    def _distance(self, log_q: Tensor) -> Tensor:
        q = log_q.exp()
        if self.divergence in ("reverse", "forward_reverse"):
            return (q * (log_q - self._log_probabilities(log_q))).sum(-1)
        difference = q - self._probabilities(log_q)
        return difference.square().sum(-1) if self.divergence == "mse" else difference.abs().sum(-1)

    def _probabilities(self, like: Tensor) -> Tensor:
        dense = self.teacher.dense()
        if dense is not None:
            return dense
        return torch.zeros_like(like).scatter_add_(1, self.teacher.ids, self.teacher.coefficients.to(like.dtype))

    def _log_probabilities(self, like: Tensor) -> Tensor:
        if self.teacher.teacher_logits is not None:
            return self.teacher.teacher_logits.float().log_softmax(-1)
        return self._probabilities(like).clamp(min=UNLISTED_PROBABILITY).log()


def to_gradients(logits: Tensor, target: DivergenceTarget, softcap: float | None) -> Tensor:
    """Losses [R], float32 at least, of `logits` [R, V], which become their gradients."""
    return torch.cat([_tile_to_gradients(logits[tile], target.rows(tile), softcap) for tile in tiles_of(logits)])


def _tile_to_gradients(logits: Tensor, target: DivergenceTarget, softcap: float | None) -> Tensor:
    with torch.enable_grad():
        z = logits.detach().to(torch.promote_types(logits.dtype, torch.float32)).requires_grad_()
        capped = z if softcap is None else softcap * torch.tanh(z / softcap)
        losses = target.losses(capped.log_softmax(-1))
        (gradients,) = torch.autograd.grad(losses.sum(), z)
    logits.copy_(gradients)
    return losses.detach()
