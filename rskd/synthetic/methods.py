"""The methods that are compared: what each takes from the teacher, and where it puts the mass that it leaves over."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from torch import Tensor

from rskd.sparse_targets import SparseTargets
from rskd.student.objective import Residual
from rskd.teacher.sampling import Sampling, sample_targets


@dataclass(frozen=True)
class Method:
    """Cross-entropy with the labels, KD from the whole teacher, or sparse KD from `sampling` with its `residual`."""

    kind: Literal["ce", "full_kd", "sparse_kd"]
    sampling: Sampling | None = None
    residual: Residual = "none"

    def draw(self, teacher_logits: Tensor, keys: Tensor) -> SparseTargets:
        """Sparse targets [R, K] of `teacher_logits` [R, V]; `keys` int64 [R]."""
        assert self.sampling is not None
        return sample_targets(teacher_logits, **asdict(self.sampling), keys=keys)


def sparse_methods(*, k: int, random_rounds: int, systematic_rounds: int, seed: int) -> dict[str, Method]:
    """Top-K alone, with each residual of the paper's section 3, and both unbiased samplers."""
    top_k = Sampling("top_k", k=k, seed=seed)
    return {
        "top_k": Method("sparse_kd", top_k),
        "top_k + smoothing": Method("sparse_kd", top_k, "smooth"),
        "top_k + ghost token": Method("sparse_kd", top_k, "ghost"),
        "top_k + naive fix": Method("sparse_kd", top_k, "label"),
        "random": Method("sparse_kd", Sampling("random", num_samples=random_rounds, seed=seed)),
        "systematic": Method("sparse_kd", Sampling("systematic", num_samples=systematic_rounds, seed=seed)),
    }
