"""Answers of a causal LM that vLLM runs: the same questions and answers as `rskd.evaluation.generation`.

Needs the environment of `make vllm-env`. An answer has a seed of its own, so it does not depend on its batch, but for
rounding; its draws are vLLM's, not those of the Transformers engine.
"""

# pyright: reportMissingImports=false
# vLLM is in the environment of make vllm-env alone.

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import fields
from typing import Any

from vllm import LLM, SamplingParams
from vllm.engine.arg_utils import EngineArgs

from rskd.config import PlannedGenerate
from rskd.errors import ConfigError, first_line
from rskd.evaluation.generation import Answer, Question, Voice, room
from rskd.models.load import load_config
from rskd.models.vllm_arguments import CPU_CACHE_BYTES, check_engine_args


class VllmGenerator:
    """An engine over the model of one directory."""

    def __init__(self, model_dir: str, settings: PlannedGenerate, *, lengths: Collection[int], trust_remote_code: bool):
        """`lengths` are those of the questions that will come. Raises ConfigError for what vLLM refuses."""
        self._settings = settings
        self._config = load_config(model_dir, trust_remote_code=trust_remote_code)
        fitting = [length for length in lengths if room(self._config, settings, length) > 0] or [1]
        own: dict[str, Any] = {
            "model": model_dir,
            "dtype": settings.dtype,
            "load_format": "safetensors",
            "skip_tokenizer_init": True,
            "generation_config": "vllm",  # the model's own settings are not part of the protocol
            "max_model_len": max(length + room(self._config, settings, length) for length in fitting),
            "trust_remote_code": trust_remote_code,
        }
        known = [field.name for field in fields(EngineArgs)]
        check_engine_args(settings.engine_args, own, known, "generate")
        defaults = {} if settings.gpus else {"kv_cache_memory_bytes": CPU_CACHE_BYTES}
        try:
            self._llm = LLM(**own | defaults | settings.engine_args)
        except (ValueError, OSError, RuntimeError) as error:
            raise ConfigError(
                f"vLLM cannot load {model_dir} ({first_line(error)}): correct the model or generate.engine_args"
            ) from error

    def generate(self, voice: Voice, questions: Sequence[Question]) -> Iterator[Answer]:
        """Answers to `questions`, in order."""
        limits = [room(self._config, self._settings, len(question.ids)) for question in questions]
        asked = [(question, limit) for question, limit in zip(questions, limits) if limit > 0]
        prompts: Any = [{"prompt_token_ids": list(question.ids)} for question, _ in asked]
        padded = self._llm.model_config.get_vocab_size() > voice.num_ids
        allowed = list(range(voice.num_ids)) if padded else None
        params = [self._params(voice, question, limit, allowed) for question, limit in asked]
        outputs = iter(self._llm.generate(prompts, params, use_tqdm=False) if asked else ())
        for limit in limits:
            yield voice.read(next(outputs).outputs[0].token_ids, limit) if limit > 0 else Answer("", 0, "no room")

    def close(self) -> None:
        """End the engine's processes."""
        self._llm.llm_engine.engine_core.shutdown()

    def _params(self, voice: Voice, question: Question, limit: int, allowed: list[int] | None) -> SamplingParams:
        settings = self._settings
        return SamplingParams(
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_tokens=limit,
            seed=int.from_bytes(hashlib.sha256(f"{settings.seed}/{question.key}".encode()).digest()[:7]),
            stop_token_ids=list(voice.stop_ids),
            allowed_token_ids=allowed,
            detokenize=False,
        )
