"""Training objectives on hidden states and an output head: sparse KD, cross-entropy, full KD.

    targets, times 1-α ─┐
    labels, times α ────┼─► Target: Σ_v c_v (lse(z) - z_v) ─► eager | chunked | triton ─► reduction
    token weights ──────┘                                      fused_loss, triton_loss

All three are one loss: cross-entropy has one target entry a token, full KD the teacher's softmax. α is `ce_weight` and
weighs CE: L = α·CE + (1-α)·KD (paper, 5.3). Losses are in nats.

Shapes: N tokens, D hidden, V rows of the head, K target entries.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from rskd.output_head import OutputHead
from rskd.sparse_targets import SparseTargets
from rskd.student import triton_loss
from rskd.student.fused_loss import Target, ToGradients, chunked_loss, to_gradients

Reduction = Literal["mean", "sum", "none"]
Impl = Literal["auto", "eager", "chunked", "triton"]


def sparse_kd_loss(
    hidden: Tensor,
    lm_head_weight: Tensor,
    targets: SparseTargets,
    labels: Tensor | None = None,
    *,
    ce_weight: float = 0.0,
    token_weights: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    impl: Impl = "auto",
    bias: Tensor | None = None,
    softcap: float | None = None,
    vocab_size: int | None = None,
    ghost_token: bool = False,
) -> Tensor:
    """α·CE + (1-α)·Σ_k w_k (lse(z) - z_k) of logits z = hidden @ lm_head_weight.T (+ bias, softcap), α = `ce_weight`.

    At α = 0: `F.cross_entropy(z, targets.to_dense(V))`, for weights that need not sum to 1.

    `hidden` [N, D], `lm_head_weight` [V, D], `targets` [N, K], `labels` int64 [N], `token_weights` [N]. Ids from
    `vocab_size` on are padding: no part of the softmax. A token whose label is `ignore_index` has neither CE nor KD.
    "sum" adds token_weight·loss over the other tokens, "mean" divides that by their number (0 where there are none),
    "none" returns [N]. Gradients go to hidden, lm_head_weight and bias. `impl` eager keeps [N, V] tensors, chunked and
    triton none; auto is triton on a GPU where it is installed, else chunked. With `ghost_token`, all other ids are one
    more entry, which has the rest of the teacher's mass: for top-k, whose entries with weight 0 are padding.

    Raises ValueError for shapes that do not fit, `ce_weight` outside 0..1 or without labels, unknown names.
    Source: paper, Eq. 4, 5.3; 3.2 and A.5 for the ghost token.
    """
    _check_shape("targets", targets.ids, (len(hidden), *targets.ids.shape[-1:]))
    target = Target(targets.ids, targets.weights.detach().float())
    if ghost_token:
        listed = torch.where(target.coefficients != 0, target.ids, target.ids[:, :1])
        rest = (1 - target.coefficients.sum(-1)).clamp(min=0)
        target = target._replace(ghost_ids=listed, ghost_coefficients=rest)
    return _loss(
        hidden,
        OutputHead(lm_head_weight, bias, softcap),
        target,
        labels,
        vocab_size=vocab_size,
        ce_weight=ce_weight,
        token_weights=token_weights,
        ignore_index=ignore_index,
        reduction=reduction,
        impl=impl,
    )


def cross_entropy_loss(
    hidden: Tensor,
    lm_head_weight: Tensor,
    labels: Tensor,
    **options: Any,
) -> Tensor:
    """`F.cross_entropy(hidden @ lm_head_weight.T, labels)`; the options are those of `sparse_kd_loss`."""
    nothing = SparseTargets(labels.new_zeros(len(hidden), 0), hidden.new_zeros(len(hidden), 0))
    return sparse_kd_loss(hidden, lm_head_weight, nothing, labels, ce_weight=1.0, **options)


def full_kd_loss(
    hidden: Tensor,
    lm_head_weight: Tensor,
    teacher_logits: Tensor,
    labels: Tensor | None = None,
    *,
    ce_weight: float = 0.0,
    token_weights: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    impl: Impl = "auto",
    bias: Tensor | None = None,
    softcap: float | None = None,
    vocab_size: int | None = None,
) -> Tensor:
    """α·CE + (1-α)·Σ_v t_v (lse(z) - z_v) with t = softmax(`teacher_logits` [N, V]): what sparse KD estimates.

    With `vocab_size`, t is over the ids below it, and the teacher's padding may differ from the student's. The other
    arguments and errors are those of `sparse_kd_loss`.
    """
    head = OutputHead(lm_head_weight, bias, softcap)
    num_ids = len(head.narrow(vocab_size).weight)
    _check_shape("teacher_logits", teacher_logits[:, :vocab_size], (len(hidden), num_ids))
    target = Target(
        torch.empty(len(hidden), 0, dtype=torch.int64, device=hidden.device),
        torch.empty(len(hidden), 0, device=hidden.device),
        teacher_logits[:, :num_ids].detach(),
        torch.ones(len(hidden), device=hidden.device),
    )
    return _loss(
        hidden,
        head,
        target,
        labels,
        vocab_size=vocab_size,
        ce_weight=ce_weight,
        token_weights=token_weights,
        ignore_index=ignore_index,
        reduction=reduction,
        impl=impl,
    )


def hard_easy_weights(label_logprob: Tensor, *, threshold: float, ratio: float, hard_fraction: float) -> Tensor:
    """Token weights, float32 of any shape: `ratio` times as much for hard tokens as for easy ones, mean 1 (paper, 5.3).

    A token is hard where the teacher's log-probability of its label is below `threshold`; `hard_fraction` is the share
    of such tokens over the whole cache, so that the mean is 1 there and not batch by batch.
    """
    easy = 1 / (1 + hard_fraction * (ratio - 1))
    return torch.where(label_logprob < threshold, ratio * easy, easy)


def _loss(
    hidden: Tensor,
    head: OutputHead,
    target: Target,
    labels: Tensor | None,
    *,
    vocab_size: int | None,
    ce_weight: float,
    token_weights: Tensor | None,
    ignore_index: int,
    reduction: Reduction,
    impl: Impl,
) -> Tensor:
    """The reduced loss of KD targets, before they are mixed with the labels and weighed."""
    _check_options(hidden, head, labels, token_weights, ce_weight, reduction, impl)
    valid = torch.ones(len(hidden), device=hidden.device) if labels is None else (labels != ignore_index).float()
    if labels is not None and ce_weight > 0:
        target = _mix(target, torch.where(labels == ignore_index, 0, labels), ce_weight)
    scale = valid if token_weights is None else valid * token_weights.detach().float()
    if reduction == "mean":
        scale = scale / valid.sum().clamp(min=1)  # here rather than at the end, so that gradients are rounded once
    target = target.scaled(scale)
    narrow = head.narrow(vocab_size)
    summed = reduction != "none"
    if impl == "eager":
        losses = _eager_losses(hidden, narrow, target)
        return losses.sum() if summed else losses
    kernel = _kernel(impl, hidden.device, target)
    return chunked_loss(hidden, head, target, summed=summed, vocab_size=vocab_size, kernel=kernel)


def _kernel(impl: Impl, device: torch.device, target: Target) -> ToGradients:
    sparse = target.teacher_logits is None and target.ghost_ids is None
    if impl == "triton":
        reason = triton_loss.why_not(device)
        if reason is None and not sparse:
            reason = "the kernel is for sparse targets alone: use impl='auto' for full KD and ghost tokens"
        if reason is not None:
            raise ValueError(f"impl='triton': {reason}")
        return triton_loss.to_gradients
    fast = impl == "auto" and device.type == "cuda" and sparse
    return triton_loss.to_gradients if fast and triton_loss.why_not(device) is None else to_gradients


def _mix(target: Target, labels: Tensor, ce_weight: float) -> Target:
    """α of the labels and 1-α of the targets: a label is one more entry."""
    kd = target.scaled(torch.full_like(labels, 1 - ce_weight, dtype=torch.float32))
    alpha = torch.full_like(labels, ce_weight, dtype=torch.float32)
    return kd._replace(
        ids=torch.cat([kd.ids, labels[:, None]], dim=1),
        coefficients=torch.cat([kd.coefficients, alpha[:, None]], dim=1),
    )


def _eager_losses(hidden: Tensor, head: OutputHead, target: Target) -> Tensor:
    """Losses [N] by autograd through whole logits: the readable twin of `chunked_loss`."""
    log_q = head.logits(hidden).log_softmax(-1)
    losses = -(target.coefficients * log_q.gather(1, target.ids)).sum(-1)
    dense = target.dense()
    if dense is not None:
        losses = losses - (dense * log_q).sum(-1)
    if target.ghost_ids is not None and target.ghost_coefficients is not None:
        losses = losses - target.ghost_coefficients * log_q.scatter(1, target.ghost_ids, -torch.inf).logsumexp(-1)
    return losses


def _check_options(
    hidden: Tensor,
    head: OutputHead,
    labels: Tensor | None,
    token_weights: Tensor | None,
    ce_weight: float,
    reduction: str,
    impl: str,
) -> None:
    num_tokens = len(hidden)
    _check_shape("hidden", hidden, (num_tokens, head.weight.shape[1]))
    if labels is not None:
        _check_shape("labels", labels, (num_tokens,))
    if token_weights is not None:
        _check_shape("token_weights", token_weights, (num_tokens,))
    if not 0 <= ce_weight <= 1:
        raise ValueError(f"ce_weight must be within 0..1, got {ce_weight}")
    if ce_weight > 0 and labels is None:
        raise ValueError(f"ce_weight {ce_weight} needs labels: pass labels, or ce_weight=0")
    for name, value, allowed in (("reduction", reduction, get_args(Reduction)), ("impl", impl, get_args(Impl))):
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def _check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise ValueError(f"{name} must have shape {list(shape)}, got {list(tensor.shape)}")
