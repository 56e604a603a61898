"""A teacher run by vLLM: windows in, sampled targets out; no logits and no hidden states leave the engine's workers.

    windows ─► pieces (one a document, where documents are isolated) ─► requests ─► engine ─► packed rows ─► SampledRows

Needs the environment of `make vllm-env`. The engine runs in a process of its own; one that died is started again.

Shapes: B windows, S positions, R = B·S rows.
"""

# pyright: reportMissingImports=false
# vLLM is in the environment of make vllm-env alone.

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from vllm import LLM, ModelRegistry
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.engine.exceptions import EngineDeadError

from rskd.config import PlannedTeacher
from rskd.errors import ConfigError, NonFiniteLogitsError, RskdError, first_line
from rskd.models.causal_lm import document_positions
from rskd.models.vllm_arguments import CPU_CACHE_BYTES, check_engine_args
from rskd.teacher.hidden_to_targets import Order, SampledRows
from rskd.teacher.vllm_plugin import HIDDEN_STATES, NOT_FINITE, PREFIX, Request
from rskd.teacher.wire import unpack, width

_RESTARTS = 2  # of an engine that dies over one batch of windows
_SECONDS_BETWEEN_LOOKS = 1.0

_logger = logging.getLogger(__name__)


class VllmTeacher:
    """An engine over one model."""

    def __init__(self, engine_args: dict[str, Any]) -> None:
        """`engine_args` are those of vLLM's LLM class. Raises ConfigError for a model or arguments that it refuses."""
        self._engine_args = engine_args
        self._llm = self._start()

    @classmethod
    def load(cls, config: PlannedTeacher, *, model_dir: str, seq_len: int) -> Self:
        """An engine for windows of `seq_len` positions over the safetensors of `model_dir`, in `config.dtype`."""
        return cls(engine_args(config, model_dir=model_dir, seq_len=seq_len))

    @property
    def device(self) -> torch.device:
        """Where results are."""
        return torch.device("cpu")

    @property
    def num_ids(self) -> int:
        """Rows of the output head."""
        return self._llm.model_config.get_vocab_size()

    def sample(
        self,
        input_ids: Tensor,
        keys: Tensor,
        order: Order,
        end_of_text_id: int | None = None,
        places: Tensor | None = None,
    ) -> SampledRows:
        """Samplings and statistics of the B·S rows of windows `input_ids` int64 [B, S+1].

        `keys` int64 [B, S] ascend by 1 within a window. `end_of_text_id` isolates documents: each is a request.
        With `places` int64 [n], ascending and counted in B·S, those n rows: the engine reads the pieces that have any,
        up to the last of them, and samples there alone.
        Raises ValueError for logits that are not finite, RskdError for an engine that died again and again.
        """
        wants_labels = "label_logprob" in order.statistics
        wanted = torch.ones(keys.shape, dtype=torch.bool)
        if places is not None:
            wanted = torch.zeros_like(wanted).index_put_(torch.unravel_index(places, keys.shape), torch.tensor(True))
        requests, sampled = [], [torch.empty(0, dtype=torch.bool)]
        for piece in _pieces(input_ids, end_of_text_id):
            mask = wanted[piece.window, piece.start : piece.start + len(piece.prompt)]
            read = mask[: int(mask.nonzero().max()) + 1] if mask.any() else mask[:0]
            if not len(read):
                continue
            request = Request(
                order.to_json(),
                int(keys[piece.window, piece.start]),
                piece.labels[: len(read)].int().numpy().tobytes() if wants_labels else b"",
                b"" if read.all() else read.numpy().tobytes(),
            )
            requests.append((piece.prompt[: len(read)], request))
            sampled.append(read)
        if not requests:
            return unpack(torch.empty(0, width(order), dtype=torch.int32), order)
        packed = self._encode(requests)[torch.cat(sampled)]
        if (packed[:, 0] == NOT_FINITE).any():
            raise NonFiniteLogitsError
        return unpack(packed, order)

    def hidden(self, input_ids: Tensor, end_of_text_id: int | None = None) -> Tensor:
        """Final hidden states [B, T, D] of `input_ids` int64 [B, T], as those of a TransformersTeacher."""
        padded = torch.nn.functional.pad(input_ids, (0, 1))
        requests = [(piece.prompt, Request(HIDDEN_STATES)) for piece in _pieces(padded, end_of_text_id)]
        rows = self._encode(requests).view(torch.float32)
        return rows.reshape(*input_ids.shape, -1).to(getattr(torch, self._engine_args["dtype"]))

    def close(self) -> None:
        """End the engine's processes."""
        self._llm.llm_engine.engine_core.shutdown()

    def _encode(self, requests: list[tuple[Tensor, Request]]) -> Tensor:
        """Rows of all requests in order, int32; an engine that dies is started again, a few times."""
        prompts: list[Any] = [{"prompt_token_ids": prompt.tolist()} for prompt, _ in requests]
        params = [request.params for _, request in requests]
        for _ in range(_RESTARTS + 1):
            try:
                with _woken_by_its_death(self._llm.llm_engine.engine_core):
                    outputs = self._llm.encode(prompts, params, pooling_task="token_classify", use_tqdm=False)
                return torch.cat([output.outputs.data for output in outputs])
            except EngineDeadError:
                _logger.warning("vLLM's engine died: it is started again, and its windows are done again")
                self.close()
                self._llm = self._start()
        raise RskdError(f"vLLM's engine died {_RESTARTS + 1} times over the same windows: its log says why")

    def _start(self) -> LLM:
        try:
            return LLM(**self._engine_args)
        except (ValueError, OSError, RuntimeError) as error:
            raise ConfigError(
                f"vLLM cannot load {self._engine_args['model']} ({first_line(error)}): correct teacher.model or "
                "engine_args; where memory is short, lower teacher.gpu_memory_utilization or teacher.batch_windows"
            ) from error


@contextmanager
def _woken_by_its_death(engine_core: Any) -> Iterator[None]:
    """Let a wait for the engine's output end when the engine was killed: vLLM notes that, but goes on waiting."""
    outputs: Any = getattr(engine_core, "outputs_queue", None)  # an engine within this process has none
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_SECONDS_BETWEEN_LOOKS):
            if engine_core.resources.engine_dead:
                outputs.put(EngineDeadError())
                return

    if outputs is not None:
        threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def engine_args(config: PlannedTeacher, *, model_dir: str, seq_len: int) -> dict[str, Any]:
    """Arguments of vLLM's LLM class. Raises ConfigError for an argument or an architecture that it does not know."""
    own = {
        "model": model_dir,
        "runner": "pooling",
        "hf_overrides": {"architectures": [PREFIX + _architecture(model_dir)]},
        "enable_prefix_caching": False,  # a window with a known beginning would have no rows there
        "skip_tokenizer_init": True,
        "load_format": "safetensors",
        "dtype": config.dtype,
        "max_model_len": seq_len,
        "tensor_parallel_size": config.tensor_parallel,
        "gpu_memory_utilization": config.gpu_memory_utilization,
        "quantization": config.quantization,
        "trust_remote_code": config.trust_remote_code,
    }
    if config.tensor_parallel > 1:
        own["distributed_executor_backend"] = "mp"  # the ranks share this worker's machine
    known = [field.name for field in fields(EngineArgs)]
    check_engine_args(config.engine_args, own, known, "teacher")
    num_tokens = config.batch_windows * seq_len
    defaults: dict[str, Any] = {"max_num_batched_tokens": num_tokens, "max_num_seqs": min(num_tokens, 256)}
    if not config.gpus_per_worker:
        defaults["kv_cache_memory_bytes"] = CPU_CACHE_BYTES
    return own | defaults | config.engine_args


def _architecture(model_dir: str) -> str:
    architectures = json.loads((Path(model_dir) / "config.json").read_text()).get("architectures") or ["none"]
    if architectures[0] not in ModelRegistry.get_supported_archs():
        raise ConfigError(f"vLLM has no architecture {architectures[0]} ({model_dir}): set teacher.engine=transformers")
    return architectures[0]


class _Piece(NamedTuple):
    """A window, or one document of it."""

    window: int
    start: int
    prompt: Tensor
    labels: Tensor  # the next tokens


def _pieces(input_ids: Tensor, end_of_text_id: int | None) -> Iterator[_Piece]:
    """All positions of windows [B, S+1] in order."""
    for index, window in enumerate(input_ids):
        seq_len = len(window) - 1
        starts = [0]
        if end_of_text_id is not None:
            restarts = document_positions(window[None, :seq_len], end_of_text_id)[0] == 0
            starts = restarts.nonzero()[:, 0].tolist()
        for start, end in zip(starts, [*starts[1:], seq_len]):
            yield _Piece(index, start, window[start:end], window[start + 1 : end + 1])
