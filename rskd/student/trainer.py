"""The training loop: plain functions over a student, an optimizer and the batches of a loader.

    loader ─► batch of this rank ─► micro-batches ─► StudentLoss (summed) ─► gradients, averaged over the ranks
           ─► non-finite guard ─► clip ─► AdamW ─► log(step, metrics), save(step)

Losses are summed over tokens and scaled by world_size / global number of tokens, since DDP and FSDP average: the
step does not depend on the number of workers or the size of a micro-batch. Where some positions have no loss, tokens
are those that have one, and head and loss run on these alone. The model runs without dropout (paper, Table 14), so a
step uses no random state and (weights, moments, step) are all that a checkpoint needs.

Shapes: B windows of this rank, T positions, N = B·T tokens, D hidden, V vocabulary, K unique tokens; n positions with
a loss.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW, Optimizer
from transformers import PreTrainedModel

from rskd.cache.loader import CacheBatch, CacheLoader
from rskd.config import ObjectiveConfig, PlannedTrain, TrainConfig
from rskd.errors import BiasWarning, RskdError
from rskd.models.causal_lm import hidden_states, output_head
from rskd.sparse_targets import IGNORE_INDEX, SparseTargets
from rskd.student.objective import cross_entropy_loss, full_kd_loss, hard_easy_weights, sparse_kd_loss
from rskd.student.router_loss import router_loss
from rskd.student.sharding import unwrapped, world_size

Log = Callable[[int, dict[str, float]], None]
Save = Callable[[int], None]
TeacherLogits = Callable[..., Tensor]


class NonFiniteError(RskdError):
    """A loss or a gradient is NaN or infinite; the weights are those of before the step."""


class StudentLoss(nn.Module):
    """A student and its objective as one module: DDP and FSDP see the backbone and the output head in one forward.

    `end_of_text_id` isolates documents (None: it does not). `hard_threshold` is the log-probability of the label
    under the teacher below which a token is hard. `teacher_logits` maps ids [B, T] to logits [B, T, V], and with
    `places` [n] to [n, V] (full_kd).
    """

    def __init__(
        self,
        student: PreTrainedModel,
        objective: ObjectiveConfig,
        *,
        vocab_size: int,
        end_of_text_id: int | None = None,
        hard_threshold: float | None = None,
        teacher_logits: TeacherLogits | None = None,
    ):
        super().__init__()
        self.student = student
        self.objective = objective
        self.vocab_size = vocab_size
        self.end_of_text_id = end_of_text_id
        self.hard_threshold = hard_threshold
        self.teacher_logits = teacher_logits
        self.router_loss = router_loss(student)
        self.last_router_loss: Tensor | None = None  # of the last forward, without coefficient and gradient

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor,
        targets: SparseTargets | None,
        label_logprob: Tensor | None,
        places: Tensor | None = None,
    ) -> Tensor:
        """Summed loss in nats of ids and labels int64 [B, T], targets [B, T, K], label_logprob [B, T].

        With `places` int64 [n], ascending and counted in B·T, only these have a loss: all but the ids are [n] or [n, K]
        then. A router's auxiliary loss, which is a mean over all B·T tokens of this forward, is added B·T (or n) times
        by its coefficient: divided by the global number of them it is the mean of the forwards', weighted by theirs.
        So it depends (by the spread between micro-batches) on how a step is cut into forwards, as in any trainer.
        """
        loss = self._objective_loss(input_ids, labels, targets, label_logprob, places)
        if self.router_loss is None:
            return loss
        auxiliary = self.router_loss.take()
        self.last_router_loss = auxiliary.detach()
        return loss + self.router_loss.coefficient * labels.numel() * auxiliary

    def _objective_loss(
        self,
        input_ids: Tensor,
        labels: Tensor,
        targets: SparseTargets | None,
        label_logprob: Tensor | None,
        places: Tensor | None,
    ) -> Tensor:
        hidden_ND = hidden_states(self.student, input_ids, self.end_of_text_id, places).flatten(0, -2)
        labels_N = labels.flatten()
        head = output_head(self.student)
        shared: dict[str, Any] = {
            "bias": head.bias,
            "softcap": head.softcap,
            "vocab_size": self.vocab_size,
            "reduction": "sum",
        }
        objective = self.objective
        if objective.kind == "ce":
            return cross_entropy_loss(hidden_ND, head.weight, labels_N, **shared)
        shared |= {"ce_weight": objective.ce_weight, "divergence": objective.divergence}
        if objective.kind == "full_kd":
            assert self.teacher_logits is not None
            at_places = () if places is None else (places,)
            logits_NV = self.teacher_logits(input_ids, *at_places).flatten(0, -2)
            return full_kd_loss(hidden_ND, head.weight, logits_NV, labels_N, **shared)
        assert targets is not None
        return sparse_kd_loss(
            hidden_ND,
            head.weight,
            targets.reshape(len(labels_N)),
            labels_N,
            token_weights=self._token_weights(label_logprob),
            residual=objective.residual,
            impl=objective.impl,
            **shared,
        )

    def _token_weights(self, label_logprob: Tensor | None) -> Tensor | None:
        if self.objective.hard_easy_ratio == 1.0:
            return None
        assert label_logprob is not None
        assert self.hard_threshold is not None
        return hard_easy_weights(
            label_logprob.flatten(),
            threshold=self.hard_threshold,
            ratio=self.objective.hard_easy_ratio,
            hard_fraction=self.objective.hard_percentile / 100,
        )


def make_optimizer(student: nn.Module, config: TrainConfig) -> AdamW:
    """AdamW whose decay touches matrices only: norms and biases have none."""
    named = [(name, parameter) for name, parameter in student.named_parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [(n, p) for n, p in named if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [(n, p) for n, p in named if p.ndim < 2], "weight_decay": 0.0},
    ]
    return AdamW([group for group in groups if group["params"]], lr=config.lr, betas=config.betas, fused=True)


def learning_rate(step: int, config: TrainConfig) -> float:
    """Learning rate of `step`, counted from 0: linear warm-up, then a cosine to `min_lr` (paper, Table 14).

    The peak is reached at the last step of the warm-up, `min_lr` at the last step of all.
    """
    warmup = round(config.warmup_fraction * config.steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step + 1 - warmup) / (config.steps - warmup)
    return config.min_lr + (config.lr - config.min_lr) * (1 + math.cos(math.pi * progress)) / 2


def train(
    loss: nn.Module,
    optimizer: Optimizer,
    loader: CacheLoader,
    config: PlannedTrain,
    *,
    start_step: int,
    device: torch.device,
    log: Log,
    save: Save,
) -> None:
    """Run steps `start_step` to `config.steps`; `loader` stands at `start_step`.

    `log` and `save` are called on every rank with the number of steps done: `log` after each, `save` after every
    `checkpoint_every` and after the last. The logged `loss` is the mean over the tokens of the global batch that have a
    loss, nats; `tokens` are all positions; `data_wait` is the share of the step's time that went on waiting for its
    batch.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BiasWarning)  # the job says it, and of the targets too
        batches = iter(loader)
        for step in range(start_step, config.steps):
            started = time.perf_counter()
            batch = next(batches)
            waited = time.perf_counter() - started
            metrics = train_step(loss, optimizer, batch, config, step=step, device=device)
            seconds = time.perf_counter() - started
            tokens = _global_tokens(batch, config)
            done = step + 1
            log(
                done,
                metrics | {"tokens": done * tokens, "tokens_per_s": tokens / seconds, "data_wait": waited / seconds},
            )
            if done % config.checkpoint_every == 0 or done == config.steps:
                save(done)


def train_step(
    loss: nn.Module, optimizer: Optimizer, batch: CacheBatch, config: PlannedTrain, *, step: int, device: torch.device
) -> dict[str, float]:
    """One optimizer step on this rank's slice of the global batch; returns loss, lr and grad_norm (before clipping).

    Where a router has an auxiliary loss, `router_aux_loss` is its mean over tokens, without its coefficient, and no
    part of `loss`. A micro-batch, or all of them, may have no token with a loss: its gradients are 0. Raises
    NonFiniteError, on all ranks, before the weights change.
    """
    tokens = _loss_tokens(batch, config, device)
    lr = learning_rate(step, config)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad(set_to_none=True)
    losses, router_losses = _accumulate_gradients(loss, batch, config, device, tokens)
    sums = torch.stack([losses.sum(), router_losses.sum()])
    if world_size() > 1:
        dist.all_reduce(sums)
    loss_sum, router_sum = sums
    grad_norm = nn.utils.clip_grad_norm_(loss.parameters(), config.grad_clip)
    if isinstance(grad_norm, DTensor):
        grad_norm = grad_norm.full_tensor()
    if not (loss_sum.isfinite() and grad_norm.isfinite()):
        raise _non_finite_error(losses, batch, config, step)
    optimizer.step()
    metrics = {"loss": loss_sum.item() / tokens, "lr": lr, "grad_norm": grad_norm.item()}
    router = _student_loss(loss).router_loss
    if router is not None:
        metrics["router_aux_loss"] = router_sum.item() / tokens
        metrics["loss"] -= router.coefficient * metrics["router_aux_loss"]
    return metrics


def _accumulate_gradients(
    loss: nn.Module, batch: CacheBatch, config: PlannedTrain, device: torch.device, global_tokens: int
) -> tuple[Tensor, Tensor]:
    """Add up the gradients of the micro-batches, which DDP synchronises with the last, and FSDP with each.

    Returns of each its summed loss, and its router's auxiliary loss times its tokens (0 without one): float64 [M].
    """
    scale = world_size() / global_tokens
    slices = list(_micro_batches(len(batch.row_ids), config.micro_batch))
    # A sharded block is gathered from all ranks: each makes as many passes as the one with the most rows.
    passes = _most_micro_batches(config) if isinstance(loss, FSDPModule) else len(slices)
    losses, router_losses = [], []
    for index in range(passes):
        counts = index < len(slices)
        inputs = _to_device(batch, slices[index] if counts else slice(0, 1), device)
        with _gradients_synchronised(loss, last=index == passes - 1):
            with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
                summed = loss(*inputs)
            (summed * (scale if counts else 0.0)).backward()
        if not counts:
            continue
        losses.append(summed.detach().double())
        router = _student_loss(loss).last_router_loss
        tokens = inputs[1].numel()
        router_losses.append(torch.zeros_like(losses[-1]) if router is None else router.double() * tokens)
    return torch.stack(losses), torch.stack(router_losses)


def _student_loss(loss: nn.Module) -> StudentLoss:
    return cast(StudentLoss, unwrapped(loss))


def _micro_batches(num_rows: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, num_rows, size))


def _most_micro_batches(config: PlannedTrain) -> int:
    """Of any rank, for one step."""
    return math.ceil(math.ceil(config.global_batch / world_size()) / config.micro_batch)


def _to_device(
    batch: CacheBatch, rows: slice, device: torch.device
) -> tuple[Tensor, Tensor, SparseTargets | None, Tensor | None, Tensor | None]:
    """What a StudentLoss takes of some windows; of a masked batch what has a loss alone, which is chosen on the CPU."""
    labels, targets = batch.labels[rows], batch.targets and batch.targets[rows]
    label_logprob, places = batch.statistics.get("label_logprob"), None
    label_logprob = None if label_logprob is None else label_logprob[rows]
    if batch.masked:
        places = (labels.flatten() != IGNORE_INDEX).nonzero()[:, 0]
        targets = targets and targets.reshape(labels.numel())[places]
        label_logprob = None if label_logprob is None else label_logprob.flatten()[places]
        labels = labels.flatten()[places]
    return (
        batch.input_ids[rows].to(device, non_blocking=True),
        labels.to(device, non_blocking=True),
        targets and targets.to(device, non_blocking=True),
        None if label_logprob is None else label_logprob.to(device, non_blocking=True),
        None if places is None else places.to(device, non_blocking=True),
    )


def _gradients_synchronised(loss: nn.Module, *, last: bool) -> AbstractContextManager[None]:
    return loss.no_sync() if isinstance(loss, DistributedDataParallel) and not last else nullcontext()


def _non_finite_error(losses: Tensor, batch: CacheBatch, config: PlannedTrain, step: int) -> NonFiniteError:
    """Name the rows, over all ranks, whose micro-batch has a non-finite loss; all rows if only a gradient is."""
    slices = _micro_batches(len(batch.row_ids), config.micro_batch)
    finite = losses.isfinite().tolist()
    bad = [row for rows, ok in zip(slices, finite) if not ok for row in batch.row_ids[rows].tolist()]
    mine = (bad, batch.row_ids.tolist())
    ranks = [mine]
    if world_size() > 1:
        ranks = [mine] * world_size()
        dist.all_gather_object(ranks, mine)
    culprits = [row for bad, _ in ranks for row in bad]
    what, rows = ("loss", culprits) if culprits else ("gradient", [row for _, every in ranks for row in every])
    return NonFiniteError(
        f"{what} is not finite at step {step + 1}, rows {sorted(rows)}; the step was not taken: "
        "lower train.lr, or use precision float32"
    )


def _loss_tokens(batch: CacheBatch, config: TrainConfig, device: torch.device) -> int:
    """Tokens of the global batch that have a loss, 1 at least."""
    if not batch.masked:
        return _global_tokens(batch, config)
    count = (batch.labels != IGNORE_INDEX).sum()
    if world_size() > 1:
        dist.all_reduce(count := count.to(device))
    return max(1, int(count))


def _global_tokens(batch: CacheBatch, config: TrainConfig) -> int:
    return config.global_batch * batch.input_ids.shape[1]
