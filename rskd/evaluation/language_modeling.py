"""Teacher and students on the same held-out windows, batch by batch.

    input_ids [B, T+1] ─► hidden states of each model ─► logits of a few rows ─► values of each position ─► window

No [B·T, V] tensor exists: each model's head runs on a few rows at a time.

Shapes: B windows, T positions, D hidden, V vocabulary, N = B·T rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rskd.errors import NonFiniteLogitsError, OutputError
from rskd.evaluation.acceptance import acceptance, top1_agreement
from rskd.evaluation.calibration import ReliabilityBins, bin_sums
from rskd.evaluation.window_values import MEANS, METRICS, WindowValues
from rskd.models.output_head import OutputHead

TEACHER = "teacher"
LOGITS_PER_CHUNK = 2**24  # 64 MiB in float32, for each model


@dataclass(frozen=True)
class LanguageModel:
    """A model as evaluation sees it: `hidden` maps input ids [B, T] to [B, T, D], `head` that to logits."""

    hidden: Callable[[Tensor], Tensor]
    head: OutputHead


class Comparison:
    """Metrics of a teacher and of students against it, over batches of windows; TEACHER is among `models`.

    Token ids from `vocab_size` on (padded vocabulary) have no part in any distribution.
    """

    def __init__(self, models: Mapping[str, LanguageModel], *, vocab_size: int, num_bins: int = 15):
        self._models = models
        self._heads = {name: model.head.narrow(vocab_size) for name, model in self._models.items()}
        self._rows_per_chunk = max(1, LOGITS_PER_CHUNK // vocab_size)
        self._window_means: dict[str, list[Tensor]] = {name: [] for name in self._models}
        self._window_bins: dict[str, list[Tensor]] = {name: [] for name in self._models}
        self._num_bins = num_bins

    @torch.inference_mode()
    def add(self, input_ids: Tensor) -> None:
        """Add B windows, int64 [B, T+1]: positions 0..T-1 predict tokens 1..T."""
        inputs_BT, labels_N = input_ids[:, :-1], input_ids[:, 1:].flatten()
        hidden = {name: model.hidden(inputs_BT).flatten(0, 1) for name, model in self._models.items()}
        chunks = {name: [] for name in self._models}
        for start in range(0, len(labels_N), self._rows_per_chunk):
            rows = slice(start, start + self._rows_per_chunk)
            labels = labels_N[rows].to(hidden[TEACHER].device)
            teacher_logits = self._heads[TEACHER].logits(hidden[TEACHER][rows])
            for name, head in self._heads.items():
                logits = teacher_logits if name == TEACHER else head.logits(hidden[name][rows])
                chunks[name].append(torch.stack(list(_position_values(logits, teacher_logits, labels).values())))
        for name, values in chunks.items():
            *means, confidence, correct = torch.cat(values, dim=1).unflatten(1, inputs_BT.shape)
            self._window_means[name].append(_finite(name, torch.stack(means).double().mean(2).cpu()))
            self._window_bins[name].append(bin_sums(confidence, correct, self._num_bins))

    def results(self) -> dict[str, dict[str, Any]]:
        """For the teacher and each student: METRICS, `standard_error` (clustered by window), `reliability` (bins)."""
        return {name: self._result(name) for name in self._models}

    def window_means(self, name: str) -> dict[str, list[float]]:
        """Means of each window of a model, by metric, in the order of the windows."""
        return dict(zip(MEANS, torch.cat(self._window_means[name], dim=1).tolist(), strict=True))

    def window_values(self, name: str) -> WindowValues:
        """All that was measured of a model, window by window; the windows are numbered as they came."""
        bins = torch.cat(self._window_bins[name]).numpy()  # [windows, 3, bins]
        return WindowValues(
            window=np.arange(len(bins)),
            means={metric: np.array(values) for metric, values in self.window_means(name).items()},
            count=bins[:, 0].astype(np.int64),
            confidence=bins[:, 1],
            correct=bins[:, 2].astype(np.int64),
        )

    def _result(self, name: str) -> dict[str, Any]:
        means = torch.cat(self._window_means[name], dim=1)  # [metrics, windows]
        bins = ReliabilityBins(self._num_bins)
        bins.add_sums(torch.cat(self._window_bins[name]).sum(0))
        metrics = dict(zip(MEANS, means.mean(1).tolist(), strict=True)) | {"ece": bins.ece}
        num_windows = means.shape[1]
        errors = (means.std(1) / math.sqrt(num_windows)).tolist() if num_windows > 1 else [None] * len(MEANS)
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


def _finite(name: str, window_means: Tensor) -> Tensor:
    """The means [MEANS, B] of a model; raises where one is not finite, which no file could hold."""
    if torch.isfinite(window_means).all():
        return window_means
    if name == TEACHER:
        raise NonFiniteLogitsError
    metric = MEANS[int((~torch.isfinite(window_means)).any(1).int().argmax())]
    raise OutputError(f"student {name}: its {metric} on held-out windows is not finite: train it again")


def pct_ce_to_fullkd(loss: float, *, ce: float, full_kd: float) -> float:
    """How far a student's loss has come from that of cross-entropy to that of full KD, in percent (paper, Table 1).

    100 · (L_CE - L) / (L_CE - L_FullKD)
    """
    return 100 * (ce - loss) / (ce - full_kd)
