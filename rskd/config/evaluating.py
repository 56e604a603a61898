"""What is measured of the students: held-out windows, speculative decoding, downstream tasks."""

from __future__ import annotations

import re
from typing import Literal, Self

from pydantic import Field, model_validator

from rskd.config.section import Count, Gpus, Section


class SpeculativeConfig(Section):
    draft_tokens: int = Field(default=4, ge=1, description="Tokens that the student drafts in a round.")
    new_tokens: int = Field(default=64, ge=1, description="Tokens that a prompt is continued by.")
    windows: int = Field(
        default=16, ge=1, description="Prompts: the first seq_len - new_tokens tokens of held-out windows."
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="Seed of the draws.")


class EvaluateConfig(Section):
    max_windows: int | None = Field(default=None, ge=1, description="Held-out windows to evaluate on; all by default.")
    batch_windows: Count = Field(
        default="auto",
        description="Windows in one forward pass. auto: what fits on the GPU, measured once; 4 on the CPU.",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="Precision that students run in; sums are float64. The teacher runs in teacher.dtype, as for the "
        "cache. Another precision is another figure: what was measured in the one is measured again in the other.",
    )
    num_bins: int = Field(default=15, ge=1, description="Bins of the calibration error (Guo et al. 2017).")
    workers: Count = Field(
        default="auto",
        description="Ray tasks that share the held-out windows, each with one model at a time; figures are the same "
        "for any number. auto: as many as there are GPUs for; 1 on the CPU, whose cores they would share.",
    )
    gpus: Gpus = Field(
        default="auto",
        description="GPUs that a worker reserves; 0 runs on the CPU. auto: 1 where there are GPUs, else 0.",
    )
    speculative: SpeculativeConfig | None = Field(
        default=None,
        description="Speculative decoding for real, each student as the teacher's draft; off by default, {} takes the "
        "defaults. Measured beside the acceptance that the distributions predict.",
    )
    tasks: tuple[str, ...] = Field(
        default=(),
        description="Downstream tasks of lm-eval, zero-shot: hellaswag, arc_easy, lambada_openai, lambada_standard, "
        "piqa, or those of task_path. Needs pip install 'rskd[downstream]'.",
    )
    task_path: str | None = Field(default=None, description="Folder with YAML files of your own tasks for lm-eval.")
    task_limit: int | None = Field(default=None, ge=1, description="Examples of a task, at most; all by default.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.tasks:
            self._refuse_unused("an evaluation without tasks", set(), ["task_path", "task_limit"])
        for task in self.tasks:
            if not re.fullmatch(r"[\w-]+", task):
                raise ValueError(f"tasks: {task!r} is not a name of letters, digits, _ and -: name one task an entry")
        return self
