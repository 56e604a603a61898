"""Figures 2b and 2c: a teacher, and a student of each method, that learn one classification task side by side.

    examples of some steps ─► teacher, once ─► targets of each method ─► as many steps of its student
                         └──► labels ────────────────────────────────┘
    test examples ─► confidence, correct ─► ECE

All students begin with the same weights and see the same examples: they differ in their targets alone.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rskd.errors import BiasWarning
from rskd.evaluation.calibration import expected_calibration_error
from rskd.sparse_targets import SparseTargets
from rskd.student.objective import cross_entropy_loss, full_kd_loss, sparse_kd_loss
from rskd.synthetic.methods import Method
from rskd.synthetic.tasks import Split, Task

BATCH, LEARNING_RATE, WARMUP_FRACTION = 256, 1e-2, 0.05
TEST_EXAMPLES = 50_000
_STEPS_PER_PASS = 50  # of the teacher: its logits are drawn from at once
_INFERENCE_BATCH = 2_000


@dataclass(frozen=True)
class Answers:
    """A model's answers to n test examples."""

    confidence: Tensor  # [n], the probability of the predicted class
    correct: Tensor  # bool [n]
    loss: float  # nats
    unique_tokens: float | None  # of a target, on average; None without sparse targets

    @property
    def accuracy(self) -> float:
        return float(self.correct.double().mean())

    @property
    def ece(self) -> float:
        return expected_calibration_error(self.confidence, self.correct)

    @property
    def overconfidence(self) -> float:
        return float(self.confidence.double().mean()) - self.accuracy


def train_all(
    task: Task, methods: Mapping[str, Method], *, steps: int, seed: int, advance: Callable[[int], None]
) -> dict[str, Answers]:
    """The teacher and a student of each method, trained for `steps` steps; `advance` hears of steps done."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        teacher = _Learner(task.network("teacher").to(device), Method("ce"), steps)
        student = task.network("student").to(device)
    students = {name: _Learner(copy.deepcopy(student), method, steps) for name, method in methods.items()}

    def examples(n: int, split: Split) -> tuple[Tensor, Tensor]:
        inputs, labels = task.examples(n, split, generator)
        return inputs.to(device), labels.to(device)

    passes = torch.arange(steps * BATCH).split(_STEPS_PER_PASS * BATCH)
    for keys in passes:
        teacher.learn(*examples(len(keys), "train"), None, keys)
        advance(len(keys) // BATCH)
    for keys in passes:
        inputs, labels = examples(len(keys), "train")
        teacher_logits = teacher.logits(inputs)
        for learner in students.values():
            learner.learn(inputs, labels, teacher_logits, keys.to(device))
            advance(len(keys) // BATCH)
    test = examples(TEST_EXAMPLES, "test")
    return {name: learner.test(*test) for name, learner in {"teacher": teacher, **students}.items()}


class _Learner:
    """A network with its optimizer and its method."""

    def __init__(self, network: nn.Sequential, method: Method, steps: int):
        self._body, self._head, self._method = network[:-1], cast(nn.Linear, network[-1]), method
        self._optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0, fused=True)
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimizer, LEARNING_RATE, total_steps=steps, pct_start=WARMUP_FRACTION
        )
        self._unique_tokens: list[float] = []

    def learn(self, inputs: Tensor, labels: Tensor, teacher_logits: Tensor | None, keys: Tensor) -> None:
        """Steps over examples [n, ...] with their `keys` [n], a batch each."""
        targets = None
        if self._method.kind == "sparse_kd":
            assert teacher_logits is not None
            targets = self._method.draw(teacher_logits, keys)
            self._unique_tokens.append(float(targets.num_unique.double().mean()))
        for start in range(0, len(inputs), BATCH):
            loss = self._loss(inputs, labels, teacher_logits, targets, slice(start, start + BATCH))
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()
            self._schedule.step()

    def _loss(
        self,
        inputs: Tensor,
        labels: Tensor,
        teacher_logits: Tensor | None,
        targets: SparseTargets | None,
        rows: slice,
    ) -> Tensor:
        """Of the batch `rows`. Whole logits are small here, and the eager implementation the quickest."""
        hidden, weight = self._body(inputs[rows]), self._head.weight
        options: dict[str, Any] = {"bias": self._head.bias, "impl": "eager"}
        if targets is not None:
            with warnings.catch_warnings(action="ignore", category=BiasWarning):  # the bias is what is studied
                return sparse_kd_loss(
                    hidden, weight, targets[rows], labels[rows], residual=self._method.residual, **options
                )
        if self._method.kind == "full_kd":
            assert teacher_logits is not None
            return full_kd_loss(hidden, weight, teacher_logits[rows], **options)
        return cross_entropy_loss(hidden, weight, labels[rows], **options)

    @torch.no_grad()
    def logits(self, inputs: Tensor) -> Tensor:
        """[n, C]."""
        return torch.cat([self._head(self._body(some)) for some in inputs.split(_INFERENCE_BATCH)])

    def test(self, inputs: Tensor, labels: Tensor) -> Answers:
        """Its answers to test examples."""
        logits = self.logits(inputs)
        confidence, predicted = logits.softmax(-1).max(-1)
        unique = self._unique_tokens
        return Answers(
            confidence=confidence.cpu(),
            correct=(predicted == labels).cpu(),
            loss=float(F.cross_entropy(logits, labels)),
            unique_tokens=sum(unique) / len(unique) if unique else None,
        )
