"""A causal language model as teacher and student both see it: hidden states, and an output head apart from them.

    input_ids ─► hidden_states(model, …) ─► [B, T, D] ─► OutputHead ─► logits, a few rows at a time

The head is kept apart so that neither side has to hold [B·T, V] logits.

Shapes: B batch, T positions, D hidden, V rows of the head.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from rskd.models.output_head import OutputHead


def output_head(model: PreTrainedModel) -> OutputHead:
    """The output head of any causal LM of Transformers; tied weights are the embedding's own tensor."""
    head = cast(nn.Linear, model.get_output_embeddings())
    return OutputHead(head.weight, head.bias, getattr(_text_config(model), "final_logit_softcapping", None))


def hidden_states(model: PreTrainedModel, input_ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
    """Final hidden states [B, T, D] of `input_ids` [B, T], ready for `output_head(model)`.

    `position_ids` that restart within a row (`document_positions`) mask attention across the restarts.
    """
    hidden = model.get_decoder()(input_ids=input_ids, position_ids=position_ids, use_cache=False).last_hidden_state
    scale = _logit_scale(_text_config(model))
    return hidden if scale == 1.0 else hidden * scale


def exact_attention(config: PreTrainedConfig, wanted: str) -> str:
    """`wanted`, or eager for an architecture whose attention soft-cap (Gemma 2) torch's sdpa kernels do not know."""
    capped = getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None
    return "eager" if capped and wanted == "sdpa" else wanted


def cut_vocabulary(model: PreTrainedModel, vocab_size: int) -> None:
    """Remove the ids from `vocab_size` on (padding) from the embeddings and the head of `model`."""
    if cast(nn.Embedding, model.get_input_embeddings()).num_embeddings != vocab_size:
        model.resize_token_embeddings(vocab_size)


def document_positions(input_ids: Tensor, end_of_text_id: int) -> Tensor:
    """Position ids [B, T] that restart after each end-of-text token: documents of a window are isolated."""
    positions = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
    starts = torch.zeros_like(input_ids)
    starts[:, 1:] = torch.where(input_ids[:, :-1] == end_of_text_id, positions[:, 1:], 0)
    return positions - starts.cummax(dim=1).values


def _text_config(model: PreTrainedModel):
    return model.config.get_text_config()


def _logit_scale(config) -> float:
    """Cohere multiplies logits by `logit_scale`; Granite divides them by `logits_scaling`."""
    return getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
