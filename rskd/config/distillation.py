"""A whole configuration: its sections, its students with what they inherit, and where its outputs are."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from rskd.config.cluster import RayConfig
from rskd.config.evaluating import EvaluateConfig
from rskd.config.judging import GenerateConfig, JudgeConfig
from rskd.config.promotion import PromotionConfig
from rskd.config.section import Name, Section, check_names
from rskd.config.sections import (
    CorpusConfig,
    CostsConfig,
    ObjectiveConfig,
    SamplingConfig,
    StorageConfig,
    StudentConfig,
    TeacherConfig,
    TrackingConfig,
    TrainConfig,
)
from rskd.errors import ConfigError


class StudentSpec(Section):
    """One student; what it leaves out comes from the sections of the same name at the top level."""

    sampling: str = Field(default="default", description="Name of the cache that it learns from.")
    student: StudentConfig = Field(default=StudentConfig(), description="Architecture and initialisation.")
    objective: ObjectiveConfig = Field(default=ObjectiveConfig(), description="Loss.")
    train: TrainConfig = Field(default=TrainConfig(), description="Optimisation.")


class DistillConfig(Section):
    """A whole distillation: corpus, teacher, caches, students, evaluation."""

    name: Name = Field(description="Name of the folder under storage.root.")
    storage: StorageConfig = Field(default=StorageConfig(), description="Where outputs go.")
    corpus: CorpusConfig = Field(description="Documents and how they are packed into windows.")
    teacher: TeacherConfig = Field(description="The model that is distilled.")
    sampling: SamplingConfig = Field(
        default=SamplingConfig(), description="Short for one entry `default` of samplings."
    )
    samplings: dict[str, SamplingConfig] | None = Field(
        default=None, description="Caches by name, all from one teacher pass."
    )
    student: StudentConfig = Field(default=StudentConfig(), description="Default of every student.")
    objective: ObjectiveConfig = Field(default=ObjectiveConfig(), description="Default of every student.")
    train: TrainConfig = Field(default=TrainConfig(), description="Default of every student.")
    students: dict[str, StudentSpec] | None = Field(
        default=None, description="Students by name; one `default` if left out."
    )
    evaluate: EvaluateConfig = Field(default=EvaluateConfig(), description="Evaluation on the held-out windows.")
    generate: GenerateConfig | None = Field(
        default=None, description="Answers of the students to sets of prompts; off by default."
    )
    judge: JudgeConfig | None = Field(
        default=None, description="A large model that rates those answers beside references; off by default."
    )
    promotion: PromotionConfig = Field(
        default=PromotionConfig(), description="When a student takes the place of the registry's champion."
    )
    costs: CostsConfig = Field(
        default=CostsConfig(), description="Prices, for the money that a run costs; they change no output."
    )
    tracking: TrackingConfig = Field(default=TrackingConfig(), description="MLflow.")
    ray: RayConfig = Field(default=RayConfig(), description="Ray.")

    @model_validator(mode="before")
    @classmethod
    def _inherit(cls, data: Any) -> Any:
        """Fill each student's sections from the top-level ones, key by key."""
        if not isinstance(data, dict) or not isinstance(data.get("students"), dict):
            return data
        inherited = {key: data[key] for key in ("student", "objective", "train") if key in data}
        students = {
            name: merge(inherited, spec) if isinstance(spec, dict) else spec for name, spec in data["students"].items()
        }
        return {**data, "students": students}

    @field_validator("name")
    @classmethod
    def _check_name(cls, value: str) -> str:
        if value.lower() in ("teachers", "mlartifacts") or value.lower().startswith("mlflow.db"):
            raise ValueError(f"{value} is taken, {{storage.root}}/{value} holds something else: choose another")
        return value

    @field_validator("samplings", "students")
    @classmethod
    def _check_names(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is not None:
            check_names(value)
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.samplings is not None and self.sampling != SamplingConfig():
            raise ValueError("sampling and samplings exclude each other: move sampling into samplings")
        speculative = self.evaluate.speculative
        if speculative is not None and speculative.new_tokens >= self.corpus.seq_len:
            raise ValueError(
                f"evaluate.speculative.new_tokens={speculative.new_tokens} leaves no prompt of "
                f"corpus.seq_len={self.corpus.seq_len}: lower it"
            )
        if speculative is not None and self.corpus.kind == "chat":
            raise ValueError("evaluate.speculative continues texts, which corpus.kind=chat has not: remove it")
        if not self.ray.enabled:
            self._check_without_ray()
        self._check_side_by_side()
        for name, spec in self.student_specs.items():
            if name in ("teacher", "skipped"):
                raise ValueError(f"students.{name}: the name stands for something else in the results, choose another")
            if spec.objective.kind == "sparse_kd" and spec.sampling not in self.cache_samplings:
                known = ", ".join(self.cache_samplings)
                raise ValueError(f"students.{name}.sampling={spec.sampling!r} is not in samplings ({known})")
            sampling = self.cache_samplings.get(spec.sampling)
            if sampling and sampling.method in ("systematic", "random") and spec.objective.residual != "none":
                raise ValueError(
                    f"residual={spec.objective.residual} of student {name} is for top_k and top_p: "
                    f"{sampling.method} sampling leaves no mass over, remove it"
                )
            if self.generate is not None and name in self.generate.checkpoints:
                raise ValueError(f"generate.checkpoints.{name} has the name of a student: choose another")
            if spec.objective.impl == "triton" and spec.train.gpus_per_worker == 0:
                raise ValueError(f"impl=triton of student {name} needs a GPU: set train.gpus_per_worker, or impl=auto")
        return self

    def _check_without_ray(self) -> None:
        needed = {
            "ray.address": self.ray.address is not None,
            "teacher.engine=vllm": self.teacher.engine == "vllm",
            "generate.engine=vllm": self.generate is not None and self.generate.engine == "vllm",
            f"teacher.workers={self.teacher.workers}": self.teacher.workers not in ("auto", 1),
            f"evaluate.workers={self.evaluate.workers}": self.evaluate.workers not in ("auto", 1),
            **{
                f"train.workers={spec.train.workers} of student {name}": spec.train.workers not in ("auto", 0)
                for name, spec in self.student_specs.items()
            },
            **{
                f"train.sharding=full of student {name}": spec.train.sharding == "full"
                for name, spec in self.student_specs.items()
            },
        }
        for setting, needs_ray in needed.items():
            if needs_ray:
                raise ValueError(f"{setting} needs Ray: set ray.enabled, or run in one process (train.workers=0)")

    def _check_side_by_side(self) -> None:
        at_once = self.train.at_once
        for name, spec in self.student_specs.items():
            if spec.train.at_once != at_once:
                raise ValueError(f"students.{name}.train.at_once is for all students: set train.at_once")
            in_process = spec.train.workers == 0 or not self.ray.enabled
            if in_process and at_once not in ("auto", 1):
                raise ValueError(
                    f"train.at_once={at_once} needs workers of Ray, which student {name} has not: "
                    "set train.workers and ray.enabled, or train.at_once=1"
                )

    @property
    def cache_samplings(self) -> dict[str, SamplingConfig]:
        """Sampling of each cache, by name."""
        return self.samplings or {"default": self.sampling}

    @property
    def wants_caches(self) -> bool:
        """Whether a whole run makes caches: a student learns from one, or the configuration has a section for them."""
        kinds = {spec.objective.kind for spec in self.student_specs.values()}
        return "sparse_kd" in kinds or bool(self.model_fields_set & {"sampling", "samplings"})

    @property
    def student_specs(self) -> dict[str, StudentSpec]:
        """Students by name, with everything inherited filled in."""
        if self.students is not None:
            return self.students
        sampling = next(iter(self.cache_samplings))
        return {
            "default": StudentSpec(sampling=sampling, student=self.student, objective=self.objective, train=self.train)
        }

    @property
    def registered_model(self) -> str:
        """Name of the registry's model whose champion the students of this distillation stand against."""
        return self.promotion.model or self.name

    def student_spec(self, student: str) -> StudentSpec:
        """That of one student. Raises ConfigError for a name that is none of theirs."""
        if student not in self.student_specs:
            known = ", ".join(self.student_specs)
            raise ConfigError(f"student {student} is not in students ({known}): name one of them")
        return self.student_specs[student]

    @property
    def home(self) -> str:
        """The folder of this distillation."""
        return f"{self._root}/{self.name}"

    @property
    def teachers_uri(self) -> str:
        return f"{self._root}/teachers"

    @property
    def _root(self) -> str:
        """Absolute, so that a message which names an output can be followed from any directory."""
        root = self.storage.root.rstrip("/")
        return root if "://" in root else str(Path(root).expanduser().absolute())

    def corpus_uri(self, split: Literal["train", "eval"]) -> str:
        return f"{self.home}/corpus/{split}"

    def cache_uri(self, sampling: str) -> str:
        return f"{self.home}/caches/{sampling}"

    def student_uri(self, student: str) -> str:
        return f"{self.home}/students/{student}"

    def checkpoints_uri(self, student: str) -> str:
        return f"{self.home}/checkpoints/{student}"

    @property
    def evaluation_uri(self) -> str:
        return f"{self.home}/evaluation.json"

    def answers_uri(self, model: str) -> str:
        """Folder of the answers of a student, of the teacher, or of another checkpoint."""
        return f"{self.home}/answers/{model}"

    def judgement_uri(self, model: str) -> str:
        """Folder of the ratings of those answers."""
        return f"{self.home}/judgements/{model}"

    @property
    def report_uri(self) -> str:
        return f"{self.home}/report.html"


def merge(base: dict[str, Any], update: dict[str, Any]) -> dict[str, Any]:
    """`base` with `update` on top, mapping by mapping."""
    merged = dict(base)
    for key, value in update.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged
