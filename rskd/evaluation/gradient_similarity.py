"""How near the gradients of sparse KD are to that of full KD (paper, 4.2, Table 3).

    windows ─► teacher logits ─┬─► full KD ─────────────────► gradient of each group of windows ─┐
                               └─► targets of each sampling ─► gradient of each group of windows ─┴─► inner products
    inner products of the groups ─► angle and norm ratio, of all groups, of all but one (jackknife), of the first ones

Angle and norm ratio need inner products alone, and those of any set of groups are sums of entries of [G, G] matrices:
so neither standard errors nor the growth of the batch cost another gradient. The jackknife varies data and draws
together; for the angle of a noise around full KD it is conservative, by up to √2.

The angle of an unbiased method is noise, which cancels over a batch as the gradients of single windows do; bias does
not. So where those cancel, the more the further a student is trained, a biased method's angle grows with the batch.

Shapes: G groups, B windows, T positions, P parameters, V vocabulary, K unique tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rskd.models.causal_lm import hidden_states, output_head
from rskd.progress import progress_bar
from rskd.rng import position_keys
from rskd.sparse_targets import SparseTargets
from rskd.student.objective import full_kd_loss, sparse_kd_loss
from rskd.teacher.sampling import Distribution, Sampling, draw

SAMPLINGS = {
    **{f"top_k {k}": Sampling("top_k", k=k) for k in (12, 50, 300)},  # as in Table 3
    **{f"random {n}": Sampling("random", n) for n in (12, 25, 50, 100)},
    **{f"systematic {n}": Sampling("systematic", n) for n in (12, 22, 50, 100)},
}
MICRO_BATCH = 4  # windows that are run at once
_COLUMNS = 2**20  # parameters whose products are summed in float64 at once


@dataclass(frozen=True)
class Similarity:
    """Gradient of one sampling beside that of full KD, over the same windows."""

    name: str
    sampling: Sampling
    unique_tokens: float  # mean over positions
    angle: float  # degrees
    norm_ratio: float  # to the norm of full KD's
    standard_error: dict[str, float]  # of angle and norm_ratio
    angle_by_tokens: dict[int, float]  # of the first 1, 2, 4, ... groups, by their positions
    angle_without_group: tuple[float, ...]  # what the standard error comes from

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def gradient_similarity(
    student: PreTrainedModel,
    teacher_logits: Callable[[Tensor], Tensor],
    batches: Sequence[Tensor],
    samplings: Mapping[str, Sampling] = SAMPLINGS,
    *,
    vocab_size: int,
    end_of_text_id: int | None = None,
    micro_batch: int = MICRO_BATCH,
) -> list[Similarity]:
    """Compare each of `samplings` with full KD over one global batch, at α = 0 and the student's weights as they are.

    `batches` are G >= 2 groups of as many windows int64 [B, T+1], on the student's device; together they are the global
    batch. `teacher_logits` maps ids [b, T] to logits [b, T, V], and is called once for each window, in their order; ids
    from `vocab_size` on are padding. `end_of_text_id` isolates documents. `micro_batch` windows are run at once. 2·G
    gradients are held, [P] in float32.
    """
    sizes = {batch.shape for batch in batches}
    if len(batches) < 2 or len(sizes) != 1:
        raise ValueError(f"batches must be two or more groups of one shape, got {[tuple(b.shape) for b in batches]}")
    student.eval()
    options = {"vocab_size": vocab_size, "end_of_text_id": end_of_text_id}
    drawn: dict[str, list[SparseTargets]] = {name: [] for name in samplings}
    num_parameters = sum(parameter.numel() for parameter in student.parameters() if parameter.requires_grad)
    full_GP, mine_GP = (torch.empty(len(batches), num_parameters) for _ in range(2))
    row = 0
    with progress_bar("gradients", (len(samplings) + 1) * len(batches)) as advance:
        for group, batch in enumerate(batches):
            for windows in batch.split(micro_batch):
                logits = teacher_logits(windows[:, :-1])[..., :vocab_size].flatten(0, 1)
                _kd_loss(student, windows, logits, **options).backward()
                keys = position_keys(torch.arange(row, row + len(windows)), windows.shape[1] - 1).flatten()
                for name, targets in _draw(logits, samplings, keys.to(logits.device)).items():
                    drawn[name].append(targets)
                row += len(windows)
            _take_gradient(student, out=full_GP[group])
            advance(1)
        similarities = []
        for name, sampling in samplings.items():
            targets = iter(drawn[name])
            for group, batch in enumerate(batches):
                for windows in batch.split(micro_batch):
                    _kd_loss(student, windows, next(targets), **options).backward()
                _take_gradient(student, out=mine_GP[group])
                advance(1)
            unique = torch.cat([part.num_unique.float() for part in drawn[name]]).mean().item()
            positions = batches[0][:, 1:].numel()
            similarities.append(_similarity(name, sampling, unique, inner_products(mine_GP, full_GP), positions))
    return similarities


def at_equal_unique_tokens(similarities: Sequence[Similarity]) -> list[dict[str, float]]:
    """Systematic beside random sampling where both keep as many unique tokens.

    For each systematic sampling: num_samples, unique_tokens, angle, random_angle (interpolated between the random ones
    on logarithmic axes), ratio of the two, and its standard_error (jackknife over the same groups). Those whose unique
    tokens no two random samplings enclose are left out.
    """
    random = sorted((s for s in similarities if s.sampling.method == "random"), key=lambda s: s.unique_tokens)
    if len(random) < 2:
        return []
    knots = np.log([s.unique_tokens for s in random])
    log_angles = np.log([s.angle for s in random])
    log_angles_without = np.log([s.angle_without_group for s in random]).T  # [G, random samplings]
    rows = []
    for ours in similarities:
        place = math.log(ours.unique_tokens)
        if ours.sampling.method != "systematic" or not knots[0] <= place <= knots[-1]:
            continue
        random_angle = math.exp(np.interp(place, knots, log_angles))
        ratios = [
            angle / math.exp(np.interp(place, knots, theirs))
            for angle, theirs in zip(ours.angle_without_group, log_angles_without, strict=True)
        ]
        rows.append(
            {
                "num_samples": ours.sampling.num_samples,
                "unique_tokens": ours.unique_tokens,
                "angle": ours.angle,
                "random_angle": random_angle,
                "ratio": ours.angle / random_angle,
                "standard_error": _jackknife_error(np.array(ratios)),
            }
        )
    return rows


def inner_products(mine_GP: Tensor, full_GP: Tensor) -> np.ndarray:
    """Inner products of all pairs of groups, float64 [3, G, G]: of `mine` with itself, with `full`, of `full`."""
    total = torch.zeros(3, len(mine_GP), len(mine_GP), dtype=torch.float64)
    for mine, full in zip(mine_GP.split(_COLUMNS, dim=1), full_GP.split(_COLUMNS, dim=1)):
        mine, full = mine.double(), full.double()
        total += torch.stack([mine @ mine.T, mine @ full.T, full @ full.T])
    return total.numpy()


def _draw(logits: Tensor, samplings: Mapping[str, Sampling], keys: Tensor) -> dict[str, SparseTargets]:
    distribution = Distribution.of(logits)
    return {name: draw(distribution, sampling, keys).targets(sampling) for name, sampling in samplings.items()}


def _kd_loss(
    student: PreTrainedModel,
    windows: Tensor,
    targets: SparseTargets | Tensor,
    *,
    vocab_size: int,
    end_of_text_id: int | None,
) -> Tensor:
    """Summed KD loss of windows [b, T+1] from sparse targets [b·T, K] or teacher logits [b·T, V]."""
    input_ids = windows[:, :-1]
    hidden = hidden_states(student, input_ids, end_of_text_id).flatten(0, 1)
    head = output_head(student)
    loss: Callable[..., Tensor] = full_kd_loss if isinstance(targets, Tensor) else sparse_kd_loss
    options = {"bias": head.bias, "softcap": head.softcap, "vocab_size": vocab_size}
    return loss(hidden, head.weight, targets, reduction="sum", **options)


def _take_gradient(student: PreTrainedModel, out: Tensor) -> None:
    """Move the accumulated gradient to `out`, float32 [P] in main memory; it then starts from zero."""
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
    for part, parameter in zip(out.split([parameter.numel() for parameter in parameters]), parameters):
        part.copy_(parameter.grad.flatten() if parameter.grad is not None else torch.zeros(()))
    student.zero_grad(set_to_none=True)


def _similarity(name: str, sampling: Sampling, unique: float, products: np.ndarray, positions: int) -> Similarity:
    num_groups = products.shape[1]
    everything = np.ones(num_groups)
    without = np.array([_angle_and_ratio(products, everything - group) for group in np.eye(num_groups)])
    angle, norm_ratio = _angle_and_ratio(products, everything)
    sizes = [2**power for power in range(num_groups.bit_length()) if 2**power < num_groups] + [num_groups]
    return Similarity(
        name,
        sampling,
        unique,
        angle,
        norm_ratio,
        {"angle": _jackknife_error(without[:, 0]), "norm_ratio": _jackknife_error(without[:, 1])},
        {n * positions: _angle_and_ratio(products, (np.arange(num_groups) < n).astype(float))[0] for n in sizes},
        tuple(without[:, 0].tolist()),
    )


def _angle_and_ratio(products: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    """Angle in degrees and norm ratio of the summed gradients of some `groups`, 0 or 1 each."""
    mine, both, full = (float(groups @ matrix @ groups) for matrix in products)
    return math.degrees(math.acos(min(1.0, both / math.sqrt(mine * full)))), math.sqrt(mine / full)


def _jackknife_error(without: np.ndarray) -> float:
    """Standard error of a statistic from its values without each of the G groups."""
    return math.sqrt((len(without) - 1) * float(without.var()))
