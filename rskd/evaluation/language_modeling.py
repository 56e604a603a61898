"""Teacher and students on the same held-out windows, batch by batch.

    input_ids [B, T+1] ─► hidden states of each model ─► logits of a few rows ─► values of each position ─► window

No [B·T, V] tensor exists: each model's head runs on a few rows at a time, and only where there is a loss.

Shapes: B windows, T positions, D hidden, V vocabulary, N rows: B·T, or those that have a loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
class LanguageModel:
    """A model as evaluation sees it: `hidden` maps input ids [B, T] to [B, T, D], `head` that to logits.

    With places=int64 [n], ascending and counted in B·T, it maps them to [n, D] there.
    """

    hidden: Callable[..., Tensor]
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
    def add(self, input_ids: Tensor, has_loss: Tensor | None = None) -> None:
        """Add B windows, int64 [B, T+1]: positions 0..T-1 predict tokens 1..T.

        Only those that have a loss, bool [B, T], are measured; all without it.
        """
        inputs_BT, labels_N = input_ids[:, :-1], input_ids[:, 1:].flatten()
        chosen: dict[str, Tensor] = {}
        if has_loss is not None:
            chosen = {"places": has_loss.flatten().nonzero()[:, 0]}
            labels_N = labels_N[chosen["places"]]
        hidden = {name: model.hidden(inputs_BT, **chosen).flatten(0, -2) for name, model in self._models.items()}
        chunks = {name: [] for name in self._models}
        for start in range(0, max(1, len(labels_N)), self._rows_per_chunk):
            rows = slice(start, start + self._rows_per_chunk)
            labels = labels_N[rows].to(hidden[TEACHER].device)
            teacher_logits = self._heads[TEACHER].logits(hidden[TEACHER][rows])
            for name, head in self._heads.items():
                logits = teacher_logits if name == TEACHER else head.logits(hidden[name][rows])
                chunks[name].append(torch.stack(list(_position_values(logits, teacher_logits, labels).values())))
        for name, values in chunks.items():
            values = torch.cat(values, dim=1)
            if chosen:
                everywhere = values.new_zeros(len(values), inputs_BT.numel())
                values = everywhere.index_copy_(1, chosen["places"].to(values.device), values)
            *measured, confidence, correct = values.unflatten(1, inputs_BT.shape)
            means = torch.stack(measured).double().cpu()
            means = means.mean(2) if has_loss is None else means.sum(2) / has_loss.sum(1).clamp(min=1).cpu()
            self._window_means[name].append(_finite(name, means))
            self._window_bins[name].append(bin_sums(confidence, correct, self._num_bins, has_loss))

    def results(self) -> dict[str, dict[str, Any]]:
        """For the teacher and each student: METRICS, `standard_error` (clustered by window), `reliability` (bins).

        Raises ConfigError where no window has a token with a loss.
        """
        return {name: self._result(name) for name in self._models}

    def window_means(self, name: str) -> dict[str, list[float]]:
        """Means over the tokens of each window (0 where it has none), by metric, in the order of the windows."""
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
        means, window_bins = torch.cat(self._window_means[name], dim=1), torch.cat(self._window_bins[name])
        tokens = window_bins[:, 0].sum(1).numpy()
        if not tokens.any():
            raise ConfigError(f"none of {len(tokens)} held-out windows has a token with a loss: evaluate on more")
        bins = ReliabilityBins(self._num_bins)
        bins.add_sums(window_bins.sum(0))
        mean, error = mean_over_tokens(means.numpy(), tokens)
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
