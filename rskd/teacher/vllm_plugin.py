"""Sampling inside vLLM's workers: the output head and the samplers run there, and 4 bytes a draw leave them.

    engine step ─► hidden states of the scheduled tokens ─► output head ─► sample_rows ─► pack ─► int32 [T, W]
                   of many requests, in pieces              chunk by chunk               kept until the request ends

vLLM finds `register` through the entry point group `vllm.general_plugins` in each of its processes. For every
architecture X that it knows there is then also a SampledX: the same model, as a pooling model with this pooler.
Soft-cap, scale and bias come from the model itself. Row i of a request is the distribution of token i+1. What a row's
draws depend on (samplings, keys) travels with its request, so they do not depend on how the engine batches.

The pooler runs on every rank of a tensor-parallel group, on logits that all ranks gather.

Shapes: R rows (scheduled tokens of one step), T tokens of a request, D hidden, V vocabulary, W columns of `pack`.
"""

# pyright: reportMissingImports=false
# vLLM is in the environment of make vllm-env alone.

from __future__ import annotations

import functools
import itertools
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from typing import Any, Self

import torch
from torch import Tensor, nn
from vllm import ModelRegistry
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.pooler.abstract import Pooler
from vllm.model_executor.models.config import MODELS_CONFIG_MAP
from vllm.pooling_params import PoolingParams
from vllm.tasks import PoolingTask
from vllm.v1.outputs import PoolerOutput
from vllm.v1.pool.metadata import PoolingMetadata

from rskd.models.output_head import soft_capped
from rskd.teacher.hidden_to_targets import Order, sample_rows
from rskd.teacher.sampling import Sampling
from rskd.teacher.wire import pack, width

PREFIX = "Sampled"  # of the architectures that are registered
HIDDEN_STATES = ""  # an order for the hidden states themselves, as the bits of float32: what an audit needs
NOT_FINITE = -1  # an id that stands for logits without a distribution: an exception would end the engine


@functools.cache
def register() -> None:
    """Add to each architecture that vLLM knows the one that samples. Called in each of vLLM's processes."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_after, args=(parent,), daemon=True).start()
    for architecture in list(ModelRegistry.get_supported_archs()):
        ModelRegistry.register_model(PREFIX + architecture, f"{__name__}:{PREFIX}{architecture}")
    MODELS_CONFIG_MAP.update({PREFIX + architecture: rules for architecture, rules in MODELS_CONFIG_MAP.items()})


def _exit_after(parent: BaseProcess) -> None:
    """An engine, or a worker of one, whose parent was killed would keep its memory, a GPU's too."""
    parent.join()
    os._exit(1)


def __getattr__(name: str) -> type[nn.Module]:
    """The class Sampled<architecture>, when vLLM first asks for it."""
    architecture = name.removeprefix(PREFIX)
    if architecture == name or architecture not in ModelRegistry.get_supported_archs():
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return _sampled(architecture)


@functools.cache
def _sampled(architecture: str) -> type[nn.Module]:
    base: Any = ModelRegistry.models[architecture].load_model_cls()

    class Sampled(base):
        is_pooling_model = True

        def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
            super().__init__(vllm_config=vllm_config, prefix=prefix)
            self.pooler = SamplingPooler(EngineHead.of(self))

    Sampled.__name__ = Sampled.__qualname__ = PREFIX + architecture
    return Sampled


@dataclass(frozen=True)
class EngineHead:
    """The output head of a vLLM model (`rskd.models.output_head.Head`), whatever its layout, quantisation and ranks."""

    compute_logits: Callable[[Tensor], Tensor]
    num_ids: int
    softcap: float | None
    scale: float

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """Takes soft-cap and scale out of the model, to apply them in float32."""
        processor: Any = next(module for module in model.modules() if isinstance(module, LogitsProcessor))
        softcap, processor.soft_cap = processor.soft_cap, None
        scale, processor.scale = processor.scale, 1.0
        processor.use_all_gather = True  # a gather on rank 0 would leave the others nothing to sample from
        compute_logits: Any = model.compute_logits
        return cls(compute_logits, processor.org_vocab_size, softcap, scale)

    def narrow(self, vocab_size: int | None) -> Self:
        """The head of the first `vocab_size` ids alone."""
        return self if vocab_size is None else replace(self, num_ids=vocab_size)

    def products(self, hidden: Tensor, chunk_rows: int) -> Iterator[Tensor]:
        """Products [r, V] of `chunk_rows` rows of `hidden` [R, D] at a time."""
        for rows in hidden.split(chunk_rows):
            yield self.compute_logits(rows)[:, : self.num_ids]

    def finish(self, products: Tensor) -> Tensor:
        """Logits of some of the products, float32: soft-capped, then scaled, as vLLM does it."""
        return soft_capped(products, self.softcap) * self.scale


@dataclass(frozen=True)
class Request:
    """What travels with a request, beside its tokens."""

    order: str = Order({"": Sampling()}).to_json()
    first_key: int = 0  # of its first row; the others follow
    labels: bytes = b""  # int32 [T], the next tokens, where the order wants them
    loss_mask: bytes = b""  # uint8 [T], 1 for the rows that are wanted; without it all are

    @property
    def params(self) -> PoolingParams:
        """As vLLM takes it along."""
        return PoolingParams(extra_kwargs=vars(self))

    @classmethod
    def of(cls, params: PoolingParams) -> Self:
        """Inverse of `params`. The dummy requests by which vLLM measures its memory have no arguments."""
        return cls(**(params.extra_kwargs or {}))


@dataclass(frozen=True)
class _Scheduled:
    """The rows of a request that are in one step."""

    request: Request
    start: int
    length: int

    def keys(self) -> Tensor:
        return self.request.first_key + torch.arange(self.start, self.start + self.length)

    def labels(self) -> Tensor:
        labels = torch.frombuffer(bytearray(self.request.labels), dtype=torch.int32)
        return labels[self.start : self.start + self.length].long()

    def wanted(self) -> Tensor:
        if not self.request.loss_mask:
            return torch.ones(self.length, dtype=torch.bool)
        mask = torch.frombuffer(bytearray(self.request.loss_mask), dtype=torch.uint8)
        return mask[self.start : self.start + self.length] > 0


class SamplingPooler(Pooler):
    """Samples from every row of the hidden states; a finished request's output is int32 [T, W]."""

    def __init__(self, head: EngineHead) -> None:
        super().__init__()
        self._head = head

    def get_supported_tasks(self) -> Set[PoolingTask]:
        """One of vLLM's names for an output at each token."""
        return {"token_classify"}

    def forward(self, hidden_states: Tensor, pooling_metadata: PoolingMetadata) -> PoolerOutput:
        """Packed rows of each request whose last token is in this step; None for the others."""
        cursor = pooling_metadata.get_pooling_cursor()
        lengths = cursor.num_scheduled_tokens_cpu.tolist()
        ends = cursor.seq_lens_cpu.tolist()
        scheduled = [
            _Scheduled(Request.of(params), end - length, length)
            for params, end, length in zip(pooling_metadata.pooling_params, ends, lengths)
        ]
        finished = [end == total for end, total in zip(ends, pooling_metadata.prompt_lens.tolist())]
        outputs: list[Tensor | None] = []
        for piece, state, rows, is_last in zip(
            scheduled, pooling_metadata.pooling_states, self._sample(hidden_states, scheduled), finished
        ):
            pieces = state.hidden_states_cache
            if piece.start == 0:
                pieces.clear()  # a request that was pushed out of memory starts over
            pieces.append(rows)
            outputs.append(torch.cat(pieces) if is_last else None)
        return outputs

    def _sample(self, hidden: Tensor, scheduled: list[_Scheduled]) -> Iterator[Tensor]:
        """Packed rows of each request; neighbours with equal orders are sampled together."""
        start = 0
        for text, group in itertools.groupby(scheduled, key=lambda piece: piece.request.order):
            pieces = list(group)
            lengths = [piece.length for piece in pieces]
            rows = hidden[start : start + sum(lengths)]
            start += len(rows)
            if text == HIDDEN_STATES:
                packed = (rows.float() * self._head.scale).view(torch.int32)
            else:
                packed = self._sample_rows(rows, pieces, Order.from_json(text))
            yield from packed.split(lengths)

    def _sample_rows(self, hidden: Tensor, pieces: list[_Scheduled], order: Order) -> Tensor:
        """Packed rows; those that are not wanted are 0."""
        places: slice | Tensor = slice(None)
        if any(piece.request.loss_mask for piece in pieces):
            places = torch.cat([piece.wanted() for piece in pieces]).nonzero()[:, 0].to(hidden.device)
        wants_labels = "label_logprob" in order.statistics
        labels = torch.cat([piece.labels() for piece in pieces]).to(hidden.device) if wants_labels else None
        keys = torch.cat([piece.keys() for piece in pieces]).to(hidden.device)
        packed = hidden.new_zeros((len(hidden), width(order)), dtype=torch.int32)
        if isinstance(places, Tensor) and not len(places):
            return packed
        try:
            rows = sample_rows(
                hidden[places],
                self._head,
                order.samplings,
                keys[places],
                vocab_size=order.vocab_size,
                labels=None if labels is None else labels[places],
                statistics=order.statistics,
            )
        except ValueError:  # options are checked before a request is sent: only logits are left
            return packed.fill_(NOT_FINITE)
        packed[places] = pack(rows, order)
        return packed
