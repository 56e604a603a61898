"""A teacher run by Transformers: any causal language model, frozen, giving targets, hidden states and its output head.

Shapes: B batch, T positions, D hidden, V rows of the head.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Self

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from rskd.config import TeacherConfig
from rskd.models.causal_lm import FLASH_ATTENTION, attention_without_flash, hidden_states, output_head
from rskd.models.load import load_model
from rskd.models.output_head import OutputHead
from rskd.teacher.hidden_to_targets import Order, SampledRows, sample_rows


@dataclass(frozen=True)
class TransformersTeacher:
    """A model in evaluation mode on one device."""

    model: PreTrainedModel

    @classmethod
    def load(
        cls, config: TeacherConfig, *, model_dir: str, device: torch.device | str = "cpu", isolated: bool = False
    ) -> Self:
        """Load the safetensors of `model_dir` (`resolve_model`) in `config.dtype` onto `device`.

        `isolated` says that documents will be. Raises ConfigError as `load_model` does.
        """
        model = load_model(
            model_dir,
            config.attention,
            dtype=getattr(torch, config.dtype),
            device=device,
            isolated=isolated,
            trust_remote_code=config.trust_remote_code,
            named=f"teacher {config.model}",
        )
        return cls(model.requires_grad_(False))

    def to_dtype(self, dtype: torch.dtype) -> Self:
        """A copy that computes in `dtype`, from the same weights; without FlashAttention, which has no wide types."""
        model = copy.deepcopy(self.model)
        if model.config._attn_implementation == FLASH_ATTENTION:
            model.config._attn_implementation = attention_without_flash(model.config)
        torch.nn.Module.to(model, dtype)
        return type(self)(model)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def head(self) -> OutputHead:
        """What turns the hidden states into logits."""
        return output_head(self.model)

    @property
    def num_ids(self) -> int:
        """Rows of the output head."""
        return self.head.num_ids

    @torch.inference_mode()
    def sample(
        self,
        input_ids: Tensor,
        keys: Tensor,
        order: Order,
        end_of_text_id: int | None = None,
        places: Tensor | None = None,
    ) -> SampledRows:
        """Samplings and statistics of the B·T rows of windows `input_ids` int64 [B, T+1], with `keys` int64 [B, T].

        `end_of_text_id` isolates documents. With `places` int64 [n], ascending and counted in B·T, those n rows: the
        output head and the samplers run there alone.
        """
        input_ids = input_ids.to(self.device)
        labels = input_ids[:, 1:]
        if places is not None:
            keys, places = keys.flatten()[places], places.to(self.device)
            labels = labels.flatten()[places]
        return sample_rows(
            self.hidden(input_ids[:, :-1], end_of_text_id, places),
            self.head,
            order.samplings,
            keys,
            vocab_size=order.vocab_size,
            labels=labels,
            statistics=order.statistics,
        )

    @torch.inference_mode()
    def hidden(self, input_ids: Tensor, end_of_text_id: int | None = None, places: Tensor | None = None) -> Tensor:
        """Final hidden states [B, T, D] of `input_ids` int64 [B, T], for `head`, in the teacher's dtype.

        `end_of_text_id` isolates documents: attention stays within each, and positions restart. With `places` int64
        [n], ascending and counted in B·T, [n, D] there.
        """
        places = None if places is None else places.to(self.device)
        return hidden_states(self.model, input_ids.to(self.device), end_of_text_id, places)

    @torch.inference_mode()
    def logits(
        self,
        input_ids: Tensor,
        places: Tensor | None = None,
        *,
        vocab_size: int,
        end_of_text_id: int | None = None,
    ) -> Tensor:
        """float32 logits [B, T, V], or [n, V] at `places`; ids from `vocab_size` on are -inf (padded vocabulary)."""
        return self.head.logits(self.hidden(input_ids, end_of_text_id, places), vocab_size)


def describe_teacher(config: TeacherConfig, fingerprint: str, vllm_version: str | None = None) -> dict[str, Any]:
    """What a cache's manifest says of its teacher; `fingerprint` is `rskd.models.files.model_fingerprint`."""
    described = {
        "model": config.model,
        "revision": config.revision,
        "fingerprint": fingerprint,
        "dtype": config.dtype,
        "engine": config.engine,
        "engine_version": transformers.__version__,
    }
    if config.engine == "transformers":
        return described
    return described | {
        "engine_version": vllm_version,
        "quantization": config.quantization,
        "engine_settings": {"tensor_parallel": config.tensor_parallel, **config.engine_args},
    }
