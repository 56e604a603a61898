"""How often a student agrees with its teacher, position by position.

Shapes: ... any leading shape, V vocabulary.
"""

import torch
from torch import Tensor


def acceptance(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Probability [...] that speculative sampling accepts a token drafted by the student.

        torch.minimum(student_logits.softmax(-1), teacher_logits.softmax(-1)).sum(-1)

    Logits [..., V] of any floating dtype; ids at -inf are masked. float32, or float64 where an input is.
    Source: Leviathan et al. 2023, Theorem 3.5; 1 minus the total variation distance.
    """
    _check_shapes(student_logits, teacher_logits)
    is_double = torch.float64 in (student_logits.dtype, teacher_logits.dtype)
    dtype = torch.float64 if is_double else torch.float32
    student, teacher = (_softmax(logits.to(dtype)) for logits in (student_logits, teacher_logits))
    return torch.minimum(student, teacher).sum(-1, dtype=torch.float64).to(dtype)


def top1_agreement(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """1.0 where student and teacher rank the same token first, else 0.0: float32 [...], from logits [..., V]."""
    _check_shapes(student_logits, teacher_logits)
    return (student_logits.argmax(-1) == teacher_logits.argmax(-1)).float()


def _softmax(logits: Tensor) -> Tensor:
    """softmax whose normaliser is summed in float64: torch's own, on a CPU, is off by 2e-5 at 50,000 ids in float32."""
    terms = (logits - logits.amax(-1, keepdim=True)).exp_()
    return terms.div_(terms.sum(-1, keepdim=True, dtype=torch.float64).to(terms.dtype))


def _check_shapes(student_logits: Tensor, teacher_logits: Tensor) -> None:
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"student logits {tuple(student_logits.shape)} and teacher logits {tuple(teacher_logits.shape)} "
            "differ in shape: give both the same positions and vocabulary"
        )
