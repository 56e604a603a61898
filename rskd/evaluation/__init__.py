"""Is the student a good model, is it calibrated, and how near is it to its teacher?

windows ─► language_modeling: teacher and students, batch by batch ─► lm_loss, ece, top1_agreement, acceptance, kl
cache ─► audit: does it hold what this teacher would sample? ─► AuditReport
prompts ─► generation: answers ─► judging: a large model rates them beside references ─► Verdict
"""

from rskd.evaluation.acceptance import acceptance, top1_agreement
from rskd.evaluation.calibration import ReliabilityBins, expected_calibration_error

__all__ = ["ReliabilityBins", "acceptance", "expected_calibration_error", "top1_agreement"]
