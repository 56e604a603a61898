"""Training objectives on hidden states and an output head: sparse KD, cross-entropy, full KD.

    targets, and their residual, times 1-α ─┐
    labels, times α ────────────────────────┼─► Target: Σ_v c_v (lse(z) - z_v) ─► eager | chunked | triton ─► reduction
    token weights ──────────────────────────┘                                      fused_loss, triton_loss

All three are one loss: cross-entropy has one target entry a token, full KD the teacher's softmax. α is `ce_weight` and
weighs CE: L = α·CE + (1-α)·KD (paper, 5.3). Losses are in nats. Another divergence than forward KL makes the target a
DivergenceTarget (divergence.py), and all else is the same.

`residual` says where the mass goes that top-k targets leave over, 1 - Σw:

    none    nowhere (2.1, A.4)
    smooth  to all ids alike (3.1)
    ghost   to one token that stands for all others (3.2, A.5)
    label   to the label, the paper's naive fix (3.3)

Shapes: N tokens, D hidden, V rows of the head, K target entries.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from rskd.errors import BiasWarning
from rskd.models.output_head import OutputHead
from rskd.sparse_targets import IGNORE_INDEX, SparseTargets
from rskd.student import divergence as divergences
from rskd.student import triton_loss
from rskd.student.bias import loss_bias
from rskd.student.divergence import Divergence, DivergenceTarget
from rskd.student.fused_loss import LossTarget, Target, ToGradients, chunked_loss, to_gradients

Reduction = Literal["mean", "sum", "none"]
Impl = Literal["auto", "eager", "chunked", "triton"]
Residual = Literal["none", "smooth", "ghost", "label"]


def sparse_kd_loss(
    hidden: Tensor,
    lm_head_weight: Tensor,
    targets: SparseTargets,
    labels: Tensor | None = None,
    *,
    ce_weight: float = 0.0,
    token_weights: Tensor | None = None,
    ignore_index: int = IGNORE_INDEX,
    reduction: Reduction = "mean",
    impl: Impl = "auto",
    bias: Tensor | None = None,
    softcap: float | None = None,
    vocab_size: int | None = None,
    residual: Residual = "none",
    divergence: Divergence = "forward",
) -> Tensor:
    """α·CE + (1-α)·Σ_k w_k (lse(z) - z_k) of logits z = hidden @ lm_head_weight.T (+ bias, softcap), α = `ce_weight`.

    At α = 0: `F.cross_entropy(z, targets.to_dense(V))`, for weights that need not sum to 1.

    `hidden` [N, D], `lm_head_weight` [V, D], `targets` [N, K], `labels` int64 [N], `token_weights` [N]. Ids from
    `vocab_size` on are padding: no part of the softmax. A token whose label is `ignore_index` has neither CE nor KD.
    "sum" adds token_weight·loss over the other tokens, "mean" divides that by their number (0 where there are none),
    "none" returns [N]. Gradients go to hidden, lm_head_weight and bias. `impl` eager keeps [N, V] tensors, chunked and
    triton none; auto is triton on a GPU where it is installed, else chunked. `residual` (above) is for top-k and top-p,
    whose entries with weight 0 are padding; `divergence` (divergence.py) takes the place of forward KL. Both warn
    (BiasWarning) where no sampling gives them the mean gradient of full KD.

    Raises ValueError for shapes that do not fit, `ce_weight` outside 0..1 or without labels, unknown names.
    Source: paper, Eq. 4, 5.3; 3.1-3.3 for the residual; 6.3 for the divergences.
    """
    _check_shape("targets", targets.ids, (len(hidden), *targets.ids.shape[-1:]))
    _check_names(residual=(residual, Residual))
    if residual != "none" and divergence != "forward":
        raise ValueError(f"residual={residual!r} is for divergence='forward', got {divergence!r}: leave one out")
    if residual == "label" and labels is None:
        raise ValueError("residual='label' needs labels: pass labels, or another residual")
    if reason := loss_bias(residual, divergence):
        warnings.warn(f"biased: {reason}", BiasWarning, stacklevel=2)
    return _loss(
        hidden,
        OutputHead(lm_head_weight, bias, softcap),
        _sparse_target(targets, _present(labels, ignore_index), residual),
        labels,
        divergence=divergence,
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
    ignore_index: int = IGNORE_INDEX,
    reduction: Reduction = "mean",
    impl: Impl = "auto",
    bias: Tensor | None = None,
    softcap: float | None = None,
    vocab_size: int | None = None,
    divergence: Divergence = "forward",
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
        divergence=divergence,
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


def _sparse_target(targets: SparseTargets, labels: Tensor | None, residual: Residual) -> Target:
    target = Target(targets.ids, targets.weights.detach().float())
    if residual == "none":
        return target
    rest = (1 - target.coefficients.sum(-1)).clamp(min=0)
    if residual == "smooth":
        return target._replace(uniform_coefficients=rest)
    if residual == "ghost":
        listed = torch.where(target.coefficients != 0, target.ids, target.ids[:, :1])
        return target._replace(ghost_ids=listed, ghost_coefficients=rest)
    assert labels is not None
    _check_shape("labels", labels, rest.shape)
    return target.with_entry(labels, rest)


def _present(labels: Tensor | None, ignore_index: int) -> Tensor | None:
    """Labels that are ids everywhere, for tokens that weigh nothing too."""
    return None if labels is None else torch.where(labels == ignore_index, 0, labels)


def _loss(
    hidden: Tensor,
    head: OutputHead,
    kd: Target,
    labels: Tensor | None,
    *,
    divergence: Divergence,
    vocab_size: int | None,
    ce_weight: float,
    token_weights: Tensor | None,
    ignore_index: int,
    reduction: Reduction,
    impl: Impl,
) -> Tensor:
    """The reduced loss of KD targets, before they are mixed with the labels and weighed."""
    _check_names(divergence=(divergence, Divergence), reduction=(reduction, Reduction), impl=(impl, Impl))
    _check_inputs(hidden, head, labels, token_weights, ce_weight)
    target = _mix(kd, _present(labels, ignore_index), ce_weight, divergence)
    valid = torch.ones(len(hidden), device=hidden.device) if labels is None else (labels != ignore_index).float()
    scale = valid if token_weights is None else valid * token_weights.detach().float()
    if reduction == "mean":
        scale = scale / valid.sum().clamp(min=1)  # here rather than at the end, so that gradients are rounded once
    target = target.scaled(scale)
    summed = reduction != "none"
    narrow = head.narrow(vocab_size)
    if impl == "eager":
        losses = target.losses(narrow.logits(hidden).log_softmax(-1))
        return losses.sum() if summed else losses
    kernel = _kernel(impl, hidden.device, target)
    return chunked_loss(hidden, head, target, summed=summed, vocab_size=vocab_size, kernel=kernel)


def _mix(kd: Target, labels: Tensor | None, ce_weight: float, divergence: Divergence) -> Target | DivergenceTarget:
    """α of the labels and 1-α of the divergence from the targets; a label is one more entry of a forward loss."""
    share = kd.coefficients.new_full((len(kd.coefficients),), 1 - ce_weight)
    has_forward_kl = divergence in ("forward", "forward_reverse")
    forward = kd.scaled(share) if has_forward_kl else Target(kd.ids[:, :0], kd.coefficients[:, :0])
    if labels is not None and ce_weight > 0:
        forward = forward.with_entry(labels, share.new_full(share.shape, ce_weight))
    return forward if divergence == "forward" else DivergenceTarget(divergence, kd, share, forward)


def _kernel(impl: Impl, device: torch.device, target: LossTarget) -> ToGradients:
    plain = divergences.to_gradients if isinstance(target, DivergenceTarget) else to_gradients
    sparse = isinstance(target, Target) and target.is_sparse
    if impl == "triton":
        reason = triton_loss.why_not(device)
        if reason is None and not sparse:
            reason = (
                "the kernel is for forward KL from sparse targets alone: use impl='auto' for full KD, for another "
                "divergence, and for residual smooth and ghost"
            )
        if reason is not None:
            raise ValueError(f"impl='triton': {reason}")
        return triton_loss.to_gradients
    fast = impl == "auto" and device.type == "cuda" and sparse
    return triton_loss.to_gradients if fast and triton_loss.why_not(device) is None else plain


def _check_inputs(
    hidden: Tensor, head: OutputHead, labels: Tensor | None, token_weights: Tensor | None, ce_weight: float
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


def _check_names(**options: tuple[str, Any]) -> None:
    for name, (value, allowed) in options.items():
        if value not in get_args(allowed):
            raise ValueError(f"{name} must be one of {', '.join(get_args(allowed))}, got {value!r}")


def _check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise ValueError(f"{name} must have shape {list(shape)}, got {list(tensor.shape)}")
