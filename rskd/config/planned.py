"""Sections with numbers in place of auto: what a stage works with once it is planned (`rskd.plan`)."""

# pyright: reportGeneralTypeIssues=false
# What has a default in a section is required here.

from __future__ import annotations

from rskd.config.evaluating import EvaluateConfig
from rskd.config.judging import GenerateConfig
from rskd.config.sections import TeacherConfig, TrainConfig


class PlannedTeacher(TeacherConfig):
    batch_windows: int
    workers: int
    gpus_per_worker: float


class PlannedTrain(TrainConfig):
    micro_batch: int
    workers: int
    gpus_per_worker: float


class PlannedEvaluate(EvaluateConfig):
    batch_windows: int
    workers: int
    gpus: float


class PlannedGenerate(GenerateConfig):
    gpus: float
