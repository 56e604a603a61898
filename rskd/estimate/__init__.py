"""What a distillation will cost before anything is run: storage, time, money, memory, and a store's requests."""

from rskd.estimate.distillation import (
    BYTES_PER_POSITION,
    UNIQUE_TOKENS,
    break_even,
    estimate,
    predicted_costs,
    teacher_tokens_per_s,
)
from rskd.estimate.probe import PROBE, probe

__all__ = [
    "BYTES_PER_POSITION",
    "PROBE",
    "UNIQUE_TOKENS",
    "break_even",
    "estimate",
    "predicted_costs",
    "probe",
    "teacher_tokens_per_s",
]
