"""The configuration of a distillation: frozen pydantic models, one for each section of the YAML file.

    text (YAML, --set overrides, a Prefect form) ─► load_config / DistillConfig ─► sections, handed on as values

Unknown keys are refused.
"""

from rskd.config.cluster import RayConfig
from rskd.config.distillation import DistillConfig, StudentSpec
from rskd.config.evaluating import EvaluateConfig
from rskd.config.files import load_config, to_yaml, validate_config
from rskd.config.judging import GenerateConfig, JudgeConfig, PromptSetConfig
from rskd.config.planned import PlannedEvaluate, PlannedGenerate, PlannedTeacher, PlannedTrain
from rskd.config.promotion import PromotionConfig
from rskd.config.sections import (
    CostsConfig,
    ObjectiveConfig,
    SamplingConfig,
    SourceConfig,
    StorageConfig,
    StudentConfig,
    TeacherConfig,
    TrainConfig,
)

__all__ = [
    "CostsConfig",
    "DistillConfig",
    "EvaluateConfig",
    "GenerateConfig",
    "JudgeConfig",
    "ObjectiveConfig",
    "PlannedEvaluate",
    "PlannedGenerate",
    "PlannedTeacher",
    "PlannedTrain",
    "PromotionConfig",
    "PromptSetConfig",
    "RayConfig",
    "SamplingConfig",
    "SourceConfig",
    "StorageConfig",
    "StudentConfig",
    "StudentSpec",
    "TeacherConfig",
    "TrainConfig",
    "load_config",
    "to_yaml",
    "validate_config",
]
