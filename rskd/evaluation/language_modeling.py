"""One model on held-out windows beside its teacher, a batch at a time.

    input_ids [B, T+1] ─► final hidden states ─────────┐
    those of the teacher, kept since it read the batch ┴─► logits of both, a few rows ─► values of positions ─► windows

So the two need not be loaded at the same time: of the teacher its hidden states are kept, and its output head. No
[B·T, V] tensor exists: heads run on a few rows at a time, and only where there is a loss.

Shapes: B windows, T positions, D hidden, V vocabulary, N rows: B·T, or those that have a loss. M bins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rskd.errors import ConfigError, NonFiniteLogitsError, OutputError
from rskd.evaluation.acceptance import acceptance, top1_agreement
from rskd.evaluation.calibration import ReliabilityBins, bin_sums
from rskd.evaluation.window_values import MEANS, METRICS, WindowValues, mean_over_tokens
from rskd.models.output_head import OutputHead

TEACHER = "teacher"
LOGITS_PER_CHUNK = 2**24  # 64 MiB in float32, for each model


@dataclass(frozen=True)
class Batch:
    """B held-out windows, int64 [B, T+1]: positions 0..T-1 predict tokens 1..T.

    Only those that have a loss, bool [B, T], are measured; all without it.
    """

    windows: np.ndarray  # [B], row ids in the held-out corpus
    input_ids: Tensor
    has_loss: Tensor | None = None

    @cached_property
    def places(self) -> Tensor | None:
        """The positions that are measured, int64 [N], ascending and counted in B·T; None where all are."""
        return None if self.has_loss is None else self.has_loss.flatten().nonzero()[:, 0]

    @cached_property
    def labels(self) -> Tensor:
        """The token that each of them predicts, int64 [N]."""
        labels = self.input_ids[:, 1:].flatten()
        return labels if self.places is None else labels[self.places]


@dataclass(frozen=True)
class LanguageModel:
    """A model as evaluation sees it: `hidden` maps input ids [B, T] to [B, T, D], `head` that to logits.

    With places=int64 [n], ascending and counted in B·T, it maps them to [n, D] there. The head has the ids of the
    tokenizer alone: those of a padded vocabulary have no part in any distribution.
    """

    hidden: Callable[..., Tensor]
    head: OutputHead

    @torch.inference_mode()
    def read(self, batch: Batch) -> States:
        """Its final hidden states where `batch` is measured."""
        chosen = {} if batch.places is None else {"places": batch.places}
        return States(self.hidden(batch.input_ids[:, :-1], **chosen).flatten(0, -2), self.head)


@dataclass(frozen=True)
class States:
    """What a model made of N positions: its final hidden states there, and the head that gives their logits."""

    hidden: Tensor  # [N, D]
    head: OutputHead

    def logits(self, rows: slice) -> Tensor:
        """Logits [n, V] of some of them."""
        return self.head.logits(self.hidden[rows])

    def chunks(self) -> list[slice]:
        """All rows, so many at a time that their logits are few; one chunk, which is empty, of no rows."""
        rows = max(1, LOGITS_PER_CHUNK // self.head.num_ids)
        return [slice(start, start + rows) for start in range(0, max(1, len(self.hidden)), rows)]


@torch.inference_mode()
def measure(name: str, batch: Batch, states: States, teacher: States, *, num_bins: int = 15) -> WindowValues:
    """A model on the windows of `batch`, beside its teacher; the teacher itself is beside the same `states`.

    Raises OutputError, naming the student, or NonFiniteLogitsError where a mean is not finite: no file could hold it.
    """
    chunks = []
    for rows in states.chunks():
        labels = batch.labels[rows].to(states.hidden.device)
        teacher_logits = teacher.logits(rows)
        logits = teacher_logits if states is teacher else states.logits(rows)
        chunks.append(torch.stack(list(_position_values(logits, teacher_logits, labels).values())))
    values = torch.cat(chunks, dim=1)
    shape, has_loss = batch.input_ids[:, 1:].shape, batch.has_loss
    if batch.places is not None:
        everywhere = values.new_zeros(len(values), shape.numel())
        values = everywhere.index_copy_(1, batch.places.to(values.device), values)
    *measured, confidence, correct = values.unflatten(1, shape)
    means = torch.stack(measured).double().cpu()
    means = means.mean(2) if has_loss is None else means.sum(2) / has_loss.sum(1).clamp(min=1).cpu()
    _check_finite(name, means)
    bins = bin_sums(confidence, correct, num_bins, has_loss).numpy()  # [B, 3, M]
    return WindowValues(
        window=batch.windows,
        means=dict(zip(MEANS, means.numpy(), strict=True)),
        count=bins[:, 0].astype(np.int64),
        confidence=bins[:, 1],
        correct=bins[:, 2].astype(np.int64),
    )


def over_windows(values: WindowValues) -> dict[str, Any]:
    """Of a model over all windows: METRICS, `standard_error` (clustered by window), `reliability` (bins).

    Raises ConfigError where no window has a token with a loss.
    """
    tokens = values.tokens.astype(np.float64)
    if not tokens.any():
        raise ConfigError(f"none of {len(tokens)} held-out windows has a token with a loss: evaluate on more")
    bins = ReliabilityBins(values.count.shape[1])
    of_windows = np.stack([values.count, values.confidence, values.correct], axis=1, dtype=np.float64)
    bins.add_sums(torch.from_numpy(of_windows).sum(0))
    mean, error = mean_over_tokens(np.stack([values.means[metric] for metric in MEANS]), tokens)
    metrics = dict(zip(MEANS, mean.tolist(), strict=True)) | {"ece": bins.ece}
    errors = [None] * len(MEANS) if error is None else error.tolist()
    return {metric: metrics[metric] for metric in METRICS} | {
        "standard_error": dict(zip(MEANS, errors, strict=True)),
        "reliability": bins.to_dict(),
    }


def _position_values(logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Values [N] of each position: MEANS in their order, then the top-1 `confidence` and whether it is `correct`."""
    log_probs, teacher_log_probs = logits.log_softmax(-1), teacher_logits.log_softmax(-1)
    top1 = log_probs.max(-1)
    return {
        "lm_loss": F.nll_loss(log_probs, labels, reduction="none"),
        "top1_agreement": top1_agreement(logits, teacher_logits),
        "acceptance": acceptance(logits, teacher_logits),
        "kl_to_teacher": F.kl_div(log_probs, teacher_log_probs, reduction="none", log_target=True).sum(-1),
        "confidence": top1.values.exp(),
        "correct": (top1.indices == labels).float(),
    }


def _check_finite(name: str, window_means: Tensor) -> None:
    """Raise where one of the means [MEANS, B] of a model is not finite."""
    if torch.isfinite(window_means).all():
        return
    if name == TEACHER:
        raise NonFiniteLogitsError
    metric = MEANS[int((~torch.isfinite(window_means)).any(1).int().argmax())]
    raise OutputError(f"student {name}: its {metric} on held-out windows is not finite: train it again")


def pct_ce_to_fullkd(loss: float, *, ce: float, full_kd: float) -> float:
    """How far a student's loss has come from that of cross-entropy to that of full KD, in percent (paper, Table 1).

    100 · (L_CE - L) / (L_CE - L_FullKD)
    """
    return 100 * (ce - loss) / (ce - full_kd)
