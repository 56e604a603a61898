"""What each stage does when one key of the configuration is changed after a finished run; the table in
rskd/lineage/README.md.

    python -m tests.changed_keys     # prints it
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from rskd.config import DistillConfig

METRICS = ("lm_loss", "kl_to_teacher", "acceptance", "ece", "top1_agreement")

STAGES = ("pack", "cache", "train", "evaluate")
SKIPPED, AGAIN, REFUSED = "–", "again", "refused"


@dataclass(frozen=True)
class Case:
    """A changed key: its new value, other keys that have to change with it, and what pack, cache, train, evaluate do.

    `outcome` has a letter for each stage: - skipped, a again, r refused. None: the configuration is refused, naming
    the key, since nothing that it has chosen uses that. `{root}` in a value is the folder of the test.
    """

    value: Any
    outcome: str | None
    others: dict[str, Any] = field(default_factory=dict)
    named: str = ""  # what the refusal names, where that is not the key

    def cells(self) -> list[str]:
        words = {"-": SKIPPED, "a": AGAIN, "r": REFUSED}
        return ["config refused"] * len(STAGES) if self.outcome is None else [words[letter] for letter in self.outcome]


CASES: dict[str, Case] = {
    "name": Case("other", "arrr", named="run rskd"),
    "storage.root": Case("{root}/elsewhere", "arrr", named="run rskd"),
    "corpus.kind": Case(
        "chat",
        "rrrr",
        {
            "corpus.chat_template": "{{% for message in messages %}}{{{{ message.content }}}}{{% endfor %}}",
            "corpus.isolate_documents": False,
        },
    ),
    "corpus.source.kind": Case("text", "rrrr", {"corpus.source.field": "text"}),
    "corpus.source.uri": Case("{root}/other.jsonl", "rrrr"),
    "corpus.source.field": Case("also", "rrrr"),
    "corpus.source.config_name": Case("subset", None, named="config_name"),
    "corpus.source.split": Case("test", None, named="split"),
    "corpus.tokenizer": Case("{root}/teacher", "----"),
    "corpus.seq_len": Case(8, "rrrr"),
    "corpus.seed": Case(1, "rrrr"),
    "corpus.eval_windows": Case(10_000, "r---"),
    "corpus.max_windows": Case(10, "rrrr"),
    "corpus.isolate_documents": Case(True, "rrrr"),
    "corpus.chat_template": Case("{root}/template", None, named="chat_template"),
    "corpus.loss_on": Case("all", None, named="loss_on"),
    "corpus.bos": Case("window", "rrrr"),
    "corpus.windows_per_part": Case(7, "rrrr"),
    "teacher.engine": Case("vllm", None),
    "teacher.model": Case("{root}/other-teacher", "-rrr"),
    "teacher.revision": Case("main", "----"),
    "teacher.dtype": Case("bfloat16", "-rrr"),
    "teacher.batch_windows": Case(3, "----"),
    "teacher.workers": Case(2, None),
    "teacher.gpus_per_worker": Case(1, "----"),
    "teacher.threads_per_worker": Case(2, "----"),
    "teacher.attention": Case("eager", "----"),
    "teacher.trust_remote_code": Case(True, "----"),
    "teacher.python": Case("python3", None, named="python"),
    "teacher.tensor_parallel": Case(2, None, named="tensor_parallel"),
    "teacher.gpu_memory_utilization": Case(0.5, None, named="gpu_memory_utilization"),
    "teacher.quantization": Case("fp8", None, named="quantization"),
    "teacher.engine_args": Case({"enforce_eager": True}, None, named="engine_args"),
    "sampling.method": Case("top_k", "-rrr", {"sampling.k": 5, "sampling.num_samples": 22}),
    "sampling.num_samples": Case(9, "-rrr"),
    "sampling.temperature": Case(0.8, None, named="temperature"),
    "sampling.k": Case(5, None, named="k=5"),
    "sampling.p": Case(0.9, None, named="p=0.9"),
    "sampling.seed": Case(1, "-rrr"),
    "sampling.statistics": Case(["label_logprob", "entropy"], "-rrr"),
    "sampling.layout": Case("compact", "-rrr"),
    "student.preset": Case("100m", "--ar", {"student.model": None}),
    "student.model": Case("{root}/other-student", "--ar"),
    "student.init": Case(
        "teacher_layers", "--ar", {"student.num_layers": 1, "student.model": None}, named="student.model"
    ),
    "student.num_layers": Case(1, None, named="num_layers"),
    "student.attention": Case("eager", "--ar"),
    "objective.kind": Case("ce", "--ar"),
    "objective.ce_weight": Case(0.5, "--ar"),
    "objective.hard_easy_ratio": Case(2.0, "--ar"),
    "objective.hard_percentile": Case(40, None, named="hard_percentile"),
    "objective.residual": Case("ghost", None, named="residual"),
    "objective.divergence": Case("mse", "--ar"),
    "objective.impl": Case("eager", "--ar"),
    "train.steps": Case(3, "--ar"),
    "train.global_batch": Case(3, "--ar"),
    "train.micro_batch": Case(1, "----"),
    "train.lr": Case(0.01, "--ar"),
    "train.min_lr": Case(0.0001, "--ar"),
    "train.warmup_fraction": Case(0.5, "--ar"),
    "train.betas": Case([0.9, 0.9], "--ar"),
    "train.weight_decay": Case(0.2, "--ar"),
    "train.grad_clip": Case(0.5, "--ar"),
    "train.precision": Case("bfloat16", "--ar"),
    "train.workers": Case(1, None),
    "train.gpus_per_worker": Case(1, "----"),
    "train.sharding": Case("full", None, named="sharding=full"),
    "train.activation_checkpointing": Case("blocks", "----"),
    "train.compile": Case(True, "----"),
    "train.threads_per_worker": Case(2, "----"),
    "train.at_once": Case(2, None),
    "train.checkpoint_every": Case(1, "----"),
    "train.allow_misaligned": Case(True, "--ar"),
    "train.max_failures": Case(0, "----"),
    "train.seed": Case(1, "--ar"),
    "evaluate.max_windows": Case(1, "---a"),
    "evaluate.batch_windows": Case(1, "----"),
    "evaluate.dtype": Case("bfloat16", "---a"),
    "evaluate.num_bins": Case(5, "---a"),
    "evaluate.workers": Case(2, None),
    "evaluate.gpus": Case(1, "----"),
    "evaluate.speculative": Case({"windows": 1, "new_tokens": 2}, "---a"),
    "evaluate.tasks": Case(["nothing"], "---r"),
    "evaluate.task_path": Case("{root}", None, named="task_path"),
    "evaluate.task_limit": Case(1, None, named="task_limit"),
    "generate": Case({"prompt_sets": {"own": {"kind": "own", "uri": "{root}/prompts.jsonl"}}}, "----"),
    "judge": Case({"endpoint": "http://127.0.0.1:8000/v1", "model": "judge"}, "----"),
    "promotion.model": Case("other", "----"),
    **{f"promotion.margins.{metric}": Case(0.5, "----") for metric in METRICS},
    **{f"promotion.floors.{metric}": Case(0.5, "----") for metric in METRICS},
    "promotion.improve": Case({}, "----"),
    "promotion.confidence": Case(0.9, "----"),
    "promotion.resamples": Case(2000, "----"),
    "promotion.seed": Case(1, "----"),
    "costs.price_per_gpu_hour": Case(2.5, "----"),
    "costs.price_per_core_hour": Case(0.05, "----"),
    "tracking.enabled": Case(True, "----"),
    "tracking.uri": Case("sqlite:///{root}/other.db", "----"),
    "tracking.experiment": Case("other", "----"),
    "ray.enabled": Case(True, "----"),
    "ray.address": Case("auto", None),
    "ray.code": Case("sent", None, named="code"),
    "ray.driver_cpus": Case(1, None, named="driver_cpus"),
}


def keys(section: type[BaseModel] = DistillConfig, prefix: str = "") -> Iterator[str]:
    """Every key of a configuration by its dotted name; samplings and students are made of the sections of one."""
    for name, info in section.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from keys(kind, f"{prefix}{name}.")
        elif name not in ("samplings", "students"):
            yield f"{prefix}{name}"


def table() -> str:
    """The table, in Markdown."""
    rows = [["changed key", *STAGES], ["---"] * (1 + len(STAGES))]
    rows += [[f"`{key}`", *case.cells()] for key, case in CASES.items() if case.outcome is not None]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    print(table())
