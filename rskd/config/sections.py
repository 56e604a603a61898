"""The sections of a configuration, one class for each; a field's description is what the Prefect form shows."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from rskd.config.section import Auto, Beta, Count, Gpus, Scalar, Section, Uri
from rskd.teacher_statistics import StatisticName

Attention = Annotated[
    Literal["auto", "sdpa", "flash_attention_2", "eager"],
    Field(description="Attention implementation; auto: the fastest that the architecture has and that is exact."),
]


class StorageConfig(Section):
    root: Uri = Field(default=".rskd", description="Where everything is written: a local folder or s3://bucket/prefix.")


class SourceConfig(Section):
    kind: Literal["python_docs", "text", "jsonl", "parquet", "hf"] = Field(
        description="python_docs: CPython's own documentation. text: a file is a document. jsonl, parquet: a row is "
        "a document. hf: a dataset of the Hugging Face hub."
    )
    uri: Uri | None = Field(
        default=None,
        description="A file, a folder or a glob, and text or jsonl may be compressed (.gz, .bz2, .xz, .zst); for hf a "
        "dataset id, or a folder, also one that save_to_disk wrote. A path that exists is never a glob. Not for "
        "python_docs.",
    )
    field: str = Field(
        default="text",
        description="The field or column that holds a document's text (jsonl, parquet, hf); a.b is b of the nested "
        "object a.",
    )
    config_name: str | None = Field(
        default=None, description="The dataset's configuration, which the hub calls its subset (hf)."
    )
    split: str = Field(default="train", description="The split of the dataset that is read (hf).")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (not self.uri) != (self.kind == "python_docs"):
            rule = "takes no uri" if self.kind == "python_docs" else "needs a uri"
            raise ValueError(f"source kind {self.kind} {rule}")
        options = ["field", "config_name", "split"]
        used = {"hf": set(options), "jsonl": {"field"}, "parquet": {"field"}}.get(self.kind, set())
        self._refuse_unused(f"source kind {self.kind}", used, options)
        return self


class CorpusConfig(Section):
    kind: Literal["text", "chat"] = Field(
        default="text",
        description="text: documents, every token of which is learned from. chat: conversations (source kind jsonl, "
        "parquet or hf), by the chat template, with the loss on what the assistant wrote.",
    )
    source: SourceConfig = Field(description="Where the documents come from.")
    tokenizer: str | None = Field(
        default=None, description="Hub id or directory of the tokenizer; the teacher's by default."
    )
    seq_len: int = Field(
        default=1024, ge=2, lt=2**20, description="Positions in a window; it stores seq_len + 1 tokens."
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="Seed of the shuffle of documents.")
    eval_windows: int = Field(default=64, ge=0, description="Held-out windows that the first pack provides, at least.")
    max_windows: int | None = Field(default=None, ge=1, description="Windows to train on, at most; all by default.")
    isolate_documents: bool = Field(
        default=False,
        description="Mask attention across documents and restart positions at each, for teacher and student. Of kind "
        "chat, whose documents are conversations, it is true by default.",
    )
    chat_template: str | None = Field(
        default=None,
        description="Chat template, as a Jinja text or the path of a file; the tokenizer's own by default (chat).",
    )
    loss_on: Literal["assistant", "last_assistant", "all"] = Field(
        default="assistant",
        description="The tokens that are learned from: of all the assistant's turns, of the last one, or all; a turn "
        "with train: false is left out (chat).",
    )
    bos: Literal["auto", "none", "document", "window"] = Field(
        default="auto",
        description="Where the token that begins a text (BOS) stands. auto: before each document if the teacher's "
        "tokenizer begins a text with it, else nowhere. document: before each document. window: at the first position "
        "of each window, too. Of kind chat the template writes it.",
    )
    windows_per_part: int = Field(
        default=256, ge=1, description="Windows in a part file: the unit of work, retry and resume."
    )

    @model_validator(mode="before")
    @classmethod
    def _isolate_conversations(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("kind") == "chat":
            return {"isolate_documents": True, **data}
        return data

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kind == "text":
            self._refuse_unused("kind text", set(), ["chat_template", "loss_on"])
        elif self.source.kind not in ("jsonl", "parquet", "hf"):
            raise ValueError(f"kind chat reads jsonl, parquet or hf, not source kind {self.source.kind}: change one")
        elif self.bos not in ("auto", "none"):
            raise ValueError(f"bos={self.bos} is not used by kind chat, whose template writes the BOS: remove it")
        return self


class TeacherConfig(Section):
    engine: Literal["transformers", "vllm"] = Field(
        default="transformers",
        description="What runs the teacher for the cache; vllm needs the environment of make vllm-env.",
    )
    model: str = Field(
        description="Hub id, directory, .gguf file, or package:NAME/FILE for a file of an installed Python package."
    )
    revision: str | None = Field(
        default=None, description="Hub revision; for a .gguf file sha256:HEX, which must match."
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="bfloat16", description="Precision of the teacher."
    )
    batch_windows: Count = Field(
        default="auto",
        description="Windows in one forward pass; of vllm: as many tokens, of any windows, at most. auto: what fits on "
        "the GPU, measured once; 8 on the CPU and for vllm.",
    )
    workers: Count = Field(
        default="auto",
        description="Teacher actors, each with a copy of the model. auto: as many as there are GPUs for; 1 on the CPU.",
    )
    gpus_per_worker: Gpus = Field(
        default="auto",
        description="GPUs that an actor reserves; 0 runs on the CPU. auto: 1 where there are GPUs (of vllm: "
        "tensor_parallel), else 0.",
    )
    threads_per_worker: int = Field(
        default=2, ge=1, description="CPU threads of an actor; fixed, so that logits repeat."
    )
    attention: Attention = "auto"
    trust_remote_code: bool = Field(
        default=False, description="Run code that comes with the model. Only if you trust it."
    )
    python: str | None = Field(
        default=None,
        description="Interpreter of the environment that vllm is in, on every machine; by default that of .venv-vllm.",
    )
    tensor_parallel: int = Field(default=1, ge=1, description="Processes that share one model (vllm).")
    gpu_memory_utilization: float = Field(
        default=0.9, gt=0, le=1, description="Share of a GPU's memory that vllm takes."
    )
    quantization: str | None = Field(
        default=None, description="How vllm quantises the weights, such as fp8; as the model says by default."
    )
    engine_args: dict[str, Scalar] = Field(
        default={}, description="Other arguments of vllm's LLM class, by its names, such as enforce_eager."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.engine == "transformers":
            of_vllm = ("python", "tensor_parallel", "gpu_memory_utilization", "quantization", "engine_args")
            self._refuse_unused("engine transformers", set(), of_vllm)
        elif self.gpus_per_worker not in ("auto", 0) and math.ceil(self.gpus_per_worker) != self.tensor_parallel:
            raise ValueError(
                f"gpus_per_worker={self.gpus_per_worker:g} with tensor_parallel={self.tensor_parallel}: vllm needs one "
                "GPU for each process, make them equal"
            )
        return self


class SamplingConfig(Section):
    method: Literal["systematic", "random", "top_k", "top_p"] = Field(
        default="systematic",
        description="systematic and random are unbiased; top_k and top_p are the biased baselines.",
    )
    num_samples: int = Field(
        default=22, ge=1, le=65535, description="Sampling rounds N at a position (systematic, random)."
    )
    temperature: float = Field(default=1.0, ge=0, description="Temperature t of the proposal q ∝ p^t (random only).")
    k: int | None = Field(default=None, ge=1, le=65535, description="Tokens kept (top_k), or their cap (top_p).")
    p: float | None = Field(default=None, gt=0, le=1, description="Probability mass kept (top_p).")
    seed: int = Field(default=0, ge=0, lt=2**63, description="Seed of the draws (systematic, random).")
    statistics: tuple[StatisticName, ...] = Field(default=(), description="Teacher statistics stored at each position.")
    layout: Literal["plain", "compact"] = Field(
        default="plain",
        description="Columns of the cache. compact: ranks instead of ids, counts only above 1; 12 to 15% fewer "
        "bytes (not for top_k, top_p and another temperature than 1).",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        needs = {"top_k": ("k",), "top_p": ("k", "p")}.get(self.method, ())
        for option in needs:
            if getattr(self, option) is None:
                raise ValueError(f"{self.method} needs {option}: set it")
        used = {
            "systematic": {"num_samples", "seed"},
            "random": {"num_samples", "temperature", "seed"},
            "top_k": {"k"},
            "top_p": {"k", "p"},
        }[self.method]
        self._refuse_unused(self.method, used, ["num_samples", "temperature", "k", "p", "seed"])
        if self.layout == "compact" and (self.method in ("top_k", "top_p") or self.temperature != 1):
            raise ValueError(f"layout compact stores counts, which {self.method} here has not: set layout plain")
        return self


class StudentConfig(Section):
    preset: Literal["100m", "300m", "1b", "3b"] | None = Field(
        default=None, description="A Llama of this size (300m and 3b: paper, Table 17)."
    )
    model: str | None = Field(
        default=None,
        description="Hub id or directory of a config or checkpoint; the teacher's architecture by default.",
    )
    init: Literal["random", "teacher_layers", "checkpoint"] = Field(
        default="random",
        description="random weights; teacher_layers: every n-th layer and the embeddings of the teacher; "
        "checkpoint: the weights of `model`.",
    )
    num_layers: int | None = Field(default=None, ge=1, description="Layers of the student (teacher_layers).")
    attention: Attention = "auto"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.preset and self.model:
            raise ValueError(f"preset={self.preset} and model={self.model} exclude each other: keep one")
        if self.init == "teacher_layers":
            if self.num_layers is None or self.preset or self.model:
                raise ValueError("init teacher_layers needs num_layers, and neither preset nor model")
        else:
            self._refuse_unused(f"init {self.init}", set(), ["num_layers"])
            if self.init == "checkpoint" and self.model is None:
                raise ValueError("init checkpoint needs model: the checkpoint to start from")
        return self


class ObjectiveConfig(Section):
    kind: Literal["sparse_kd", "full_kd", "ce"] = Field(
        default="sparse_kd",
        description="sparse_kd: targets of the cache. full_kd: the teacher online. ce: labels alone.",
    )
    ce_weight: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="α of L = α·CE + (1-α)·KLD: 0 is distillation alone, 1 is cross-entropy alone.",
    )
    hard_easy_ratio: float = Field(
        default=1.0, gt=0, description="Weight of hard tokens over that of easy ones, mean kept at 1 (paper 5.3)."
    )
    hard_percentile: float = Field(
        default=50.0,
        gt=0,
        lt=100,
        description="Tokens below this percentile of the teacher's confidence in the label are hard.",
    )
    residual: Literal["none", "smooth", "ghost", "label"] = Field(
        default="none",
        description="Where the mass goes that top_k and top_p leave over. none: nowhere. smooth: to all ids alike "
        "(paper 3.1). ghost: to one token that stands for all others (3.2). label: to the label, the naive fix (3.3).",
    )
    divergence: Literal["forward", "reverse", "forward_reverse", "mse", "l1"] = Field(
        default="forward",
        description="Divergence of the student from the teacher (paper 6.3). Forward KL and mse keep the gradient of "
        "full KD on average; the others are biased under sampling.",
    )
    impl: Literal["auto", "eager", "chunked", "triton"] = Field(
        default="auto", description="Implementation of the sparse loss."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        options = ["ce_weight", "hard_easy_ratio", "hard_percentile", "residual", "divergence", "impl"]
        used = {"sparse_kd": set(options), "full_kd": {"ce_weight", "divergence"}, "ce": set[str]()}[self.kind]
        self._refuse_unused(f"objective {self.kind}", used, options)
        if self.hard_easy_ratio == 1.0:
            self._refuse_unused("hard_easy_ratio=1", set(), ["hard_percentile"])
        if self.divergence != "forward":
            self._refuse_unused(f"divergence {self.divergence}", set(), ["residual"])
        if self.impl == "triton" and (self.divergence != "forward" or self.residual in ("smooth", "ghost")):
            raise ValueError(
                f"impl=triton is for forward KL with residual none or label, not divergence={self.divergence} with "
                f"residual={self.residual}: set impl=auto"
            )
        return self


class TrainConfig(Section):
    steps: int = Field(default=1000, ge=1, description="Optimizer steps.")
    global_batch: int = Field(default=32, ge=1, description="Windows in one step, over all workers.")
    micro_batch: Count = Field(
        default="auto",
        description="Windows in one forward pass of one worker; gradients accumulate. auto: what fits on the GPU, "
        "measured once; 8 on the CPU; 1 where sharded on GPUs.",
    )
    lr: float = Field(default=4e-4, gt=0, description="Peak learning rate (paper, Table 14).")
    min_lr: float = Field(default=4e-5, ge=0, description="Learning rate at the end of the cosine.")
    warmup_fraction: float = Field(default=0.04, ge=0, lt=1, description="Share of the steps that warm up linearly.")
    betas: tuple[Beta, Beta] = Field(default=(0.9, 0.95), description="Betas of AdamW.")
    weight_decay: float = Field(default=0.1, ge=0, description="Weight decay of the matrices; vectors have none.")
    grad_clip: float = Field(default=1.0, gt=0, description="Largest norm of the gradient.")
    precision: Literal["float32", "bfloat16"] = Field(
        default="bfloat16", description="Autocast precision; weights are fp32."
    )
    workers: Annotated[int, Field(ge=0)] | Auto = Field(
        default="auto",
        description="DDP workers; 0 trains in the driver's process, without Ray. auto: as many as there are GPUs for, "
        "global_batch at most; 1 on the CPU; 0 where ray.enabled is false.",
    )
    gpus_per_worker: Gpus = Field(
        default="auto",
        description="GPUs that a worker reserves; 0 runs on the CPU. auto: 1 where there are GPUs, else 0.",
    )
    sharding: Literal["none", "full"] = Field(
        default="none",
        description="none: each worker holds the whole student (DDP). full: weights, gradients and moments are divided "
        "among the workers (FSDP2), for a student that does not fit one GPU.",
    )
    activation_checkpointing: Literal["none", "blocks"] = Field(
        default="none",
        description="blocks: recompute each decoder block in the backward pass instead of keeping its activations; "
        "less memory for about a third more computation.",
    )
    compile: bool = Field(
        default=False, description="Compile the decoder blocks by torch.compile: minutes at the start, faster steps."
    )
    threads_per_worker: int = Field(default=2, ge=1, description="CPU threads of a worker.")
    at_once: Count = Field(
        default="auto",
        description="Students of a distillation that are trained at the same time, by workers of Ray; not for a single "
        "student. auto: as many as there are GPUs for, and one at a time on the CPU. workers: auto then takes its "
        "share of the GPUs.",
    )
    checkpoint_every: int = Field(default=100, ge=1, description="Steps between checkpoints.")
    allow_misaligned: bool = Field(
        default=False,
        description="Learn from a cache whose windows are not those that its teacher read: for the study of what that "
        "costs (rskd.cache.misaligned, paper D.3), and for nothing else.",
    )
    max_failures: int = Field(default=3, ge=0, description="Restarts from the last checkpoint after a worker was lost.")
    seed: int = Field(
        default=0, ge=0, lt=2**63, description="Seed of the order of windows and of random initialisation."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr={self.min_lr} is above lr={self.lr}: lower it")
        if self.sharding == "full" and self.workers == 0:
            raise ValueError(
                "sharding=full divides a student among workers of Ray Train: set workers, or sharding=none"
            )
        if self.workers != "auto" and self.workers > self.global_batch:
            raise ValueError(f"workers={self.workers} exceed global_batch={self.global_batch}: a worker would idle")
        return self


class CostsConfig(Section):
    price_per_gpu_hour: float | None = Field(
        default=None,
        ge=0,
        description="What an hour of one GPU costs, in your currency. Money is left out where it is missing.",
    )
    price_per_core_hour: float | None = Field(
        default=None,
        ge=0,
        description="What an hour of one CPU core costs, in your currency; 0 where the price of the GPUs includes it. "
        "Money is left out where it is missing.",
    )


class TrackingConfig(Section):
    enabled: bool = Field(default=True, description="False tracks nothing, and needs no MLflow.")
    uri: Uri | None = Field(
        default=None, description="MLflow tracking URI; sqlite under a local storage root by default."
    )
    experiment: str = Field(default="rskd", description="MLflow experiment.")
