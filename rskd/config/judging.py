"""The sections `generate` and `judge`: what students are asked, how they answer, and who rates the answers.

`rskd/evaluation/README.md` has the protocol.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, field_validator, model_validator

from rskd.config.section import Gpus, Scalar, Section, Uri, check_names

_REQUESTED_LIMIT = {"un_ni": 10_000}  # the paper's E.3: of Unnatural Instructions a subset of this size


def _base_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError("is no URL of an API: give its base, as https://api.openai.com/v1")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError(
            "may hold a key (a user, or what follows ? or #): give the base URL alone, and the key by the environment"
        )
    try:
        _ = parts.port
    except ValueError:
        raise ValueError("has a port that is no number up to 65535: correct it") from None
    if parts.path.rstrip("/").endswith("/completions"):
        raise ValueError("names an operation: give the base URL, which ends before /chat/completions")
    return url.rstrip("/")


Endpoint = Annotated[str, AfterValidator(_base_url)]


class PromptSetConfig(Section):
    kind: Literal["dolly", "self_inst", "vicuna", "s_ni", "un_ni", "own"] = Field(
        description="own: your own JSON Lines file. The others: the paper's five sets (E.3), as MiniLLM publishes them."
    )
    uri: Uri = Field(
        description="A file, or the folder of a published set; local or s3://. A line of an own file has prompt and "
        "reference, or messages and reference, or messages that end with the reference as the assistant's."
    )
    limit: int | None = Field(
        default=None, ge=1, description="The first so many prompts; of un_ni 10,000 by default, of the others all."
    )

    @property
    def num_prompts(self) -> int | None:
        """How many prompts are taken, at most."""
        return self.limit or _REQUESTED_LIMIT.get(self.kind)


class GenerateConfig(Section):
    prompt_sets: dict[str, PromptSetConfig] = Field(description="What is asked, by a name for each set.")
    teacher: bool = Field(default=False, description="The teacher answers, too, under the name teacher.")
    checkpoints: dict[str, Uri] = Field(
        default={}, description="Other models that answer, by name: a directory, local or s3://, or a hub id."
    )
    generations: int = Field(default=5, ge=1, lt=2**20, description="Answers to each prompt (paper, E.3).")
    max_new_tokens: int = Field(default=512, ge=1, lt=2**20, description="Tokens of an answer, at most.")
    temperature: float = Field(default=1.0, ge=0, description="Of the answers; 0 takes the likeliest token (E.3: 1).")
    top_p: float = Field(default=1.0, gt=0, le=1, description="Sample from the likeliest tokens of this mass alone.")
    seed: int = Field(default=0, ge=0, lt=2**63, description="Seed of the draws; each answer has draws of its own.")
    batch_answers: int = Field(default=16, ge=1, description="Answers generated side by side (transformers).")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="Precision of the models that answer."
    )
    gpus: Gpus = Field(
        default="auto",
        description="GPUs that generation reserves; 0 runs on the CPU. auto: 1 where there are GPUs, else 0.",
    )
    engine: Literal["transformers", "vllm"] = Field(
        default="transformers", description="What runs the models; vllm needs Ray and the environment of make vllm-env."
    )
    python: str | None = Field(
        default=None, description="Interpreter of the environment that vllm is in; by default that of .venv-vllm."
    )
    engine_args: dict[str, Scalar] = Field(
        default={}, description="Other arguments of vllm's LLM class, by its names, such as enforce_eager."
    )

    @field_validator("prompt_sets")
    @classmethod
    def _check_prompt_sets(cls, value: dict[str, PromptSetConfig]) -> dict[str, PromptSetConfig]:
        check_names(value)
        if "skipped" in value:
            raise ValueError("the name skipped says in results that nothing was left to do: choose another")
        return value

    @field_validator("checkpoints")
    @classmethod
    def _check_checkpoints(cls, value: dict[str, str]) -> dict[str, str]:
        if value:
            check_names(value)
        if "teacher" in value:
            raise ValueError("the name teacher is the teacher's: choose another, or set generate.teacher")
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.engine == "transformers":
            self._refuse_unused("engine transformers", set(), ["python", "engine_args"])
        else:
            self._refuse_unused("engine vllm", set(), ["batch_answers"])
        if self.temperature == 0:
            self._refuse_unused("temperature=0", set(), ["top_p"])
            if self.generations > 1:
                raise ValueError(
                    f"generations={self.generations} at temperature=0 would all be the same: set generations=1"
                )
        return self


class JudgeConfig(Section):
    endpoint: Endpoint = Field(description="Base URL of an OpenAI-compatible API, as http://127.0.0.1:8000/v1.")
    model: str = Field(min_length=1, description="Name of the judge at the endpoint (paper: Llama 3.1 405B Instruct).")
    both_orders: bool = Field(
        default=True,
        description="Ask twice, with the reference first and with the answer first: judges favour a place. False is "
        "the paper's single request, the reference first, at half the price.",
    )
    concurrency: int = Field(default=8, ge=1, le=1024, description="Requests under way at once, at most.")
    max_retries: int = Field(
        default=6, ge=0, le=100, description="Further attempts at a request that fails, with growing pauses."
    )
    timeout_s: float = Field(default=120.0, gt=0, description="Seconds to wait for an answer of the endpoint.")
    max_new_tokens: int = Field(
        default=64, ge=8, description="Tokens of a rating, at most; raise it for a judge that thinks before it answers."
    )
    max_tokens_spent: int | None = Field(
        default=None,
        ge=1,
        description="Tokens of requests and ratings that all models together may cost, over all runs; no cap by "
        "default.",
    )
    api_key_env: str | None = Field(
        default="OPENAI_API_KEY",
        description="Name of the environment variable that holds the key; null for an endpoint that takes none. The "
        "key itself stands nowhere.",
    )

    @field_validator("api_key_env")
    @classmethod
    def _check_variable(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Z][A-Z0-9_]*", value):
            # The value may be a key, so the message does not show it.
            raise ValueError("is no name of an environment variable (A-Z, 0-9, _): name the one that holds the key")
        return value
