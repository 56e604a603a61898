"""A causal language model as teacher and student both see it: hidden states, and an output head apart from them.

    input_ids ─► hidden_states(model, …) ─► [B, T, D] ─► output_head(model) ─► logits, a few rows at a time

The head is kept apart so that neither side has to hold [B·T, V] logits. `rskd.models.checks` compares the two with the
model's own forward pass.

Shapes: B batch, T positions, D hidden, V rows of the head, n wanted positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from rskd.models.output_head import OutputHead

FLASH_ATTENTION = "flash_attention_2"
_PROBED_TOKENS = 64  # of the two documents by which isolation is measured
# How far two computations of the same thing may be apart, relative to its size: rounding, and no more.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}

_SOFT_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")  # Gemma, RecurrentGemma, xLSTM
# Settings that scale logits, with the power that they have there. Granite and MiniCPM3 divide.
_LOGIT_SCALES: dict[str, dict[str, int]] = {
    "": {"logit_scale": 1, "lm_head_multiplier": 1, "logits_scaling": -1, "logits_mup_width_multiplier": -1},
    "hyperclovax": {"logits_scaling": 1},
    "mpt": {},  # Transformers leaves MPT's logit_scale out
}

_isolates_by_positions: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


def output_head(model: PreTrainedModel) -> OutputHead:
    """The output head of a causal LM of Transformers; tied weights are the embedding's own tensor."""
    layer = cast(nn.Linear, model.get_output_embeddings())
    config = model.config.get_text_config()
    scale, bias = _logit_scale(config), getattr(layer, "bias", None)
    caps = (getattr(config, name, None) for name in _SOFT_CAPS)
    return OutputHead(
        layer.weight,
        bias if bias is None or scale == 1.0 else bias * scale,  # `hidden_states` scales the rest
        next((cap for cap in caps if cap), None),
    )


def _logit_scale(config: PreTrainedConfig) -> float:
    """What a model multiplies its logits by: architectures have names of their own for it, not all of which count."""
    names = _LOGIT_SCALES.get(config.model_type, _LOGIT_SCALES[""])
    scale = 1.0
    for name, power in names.items():
        scale *= (getattr(config, name, None) or 1.0) ** power
    return scale


def hidden_states(
    model: PreTrainedModel, input_ids: Tensor, end_of_text_id: int | None = None, places: Tensor | None = None
) -> Tensor:
    """Final hidden states [B, T, D] of `input_ids` [B, T], ready for `output_head(model)`; [n, D] with `places`.

    `places` int64 [n], ascending, are the wanted positions, counted in B·T.

    `end_of_text_id` isolates documents: those of each are what the model gives for it alone. Where position ids that
    restart within a row keep documents apart, one pass computes all of them; elsewhere (models that take no position
    ids, and those that carry a state) each document is a row of its own, padded at its end.
    """
    if end_of_text_id is None:
        hidden = _last_hidden_state(model, input_ids)
    else:
        positions = document_positions(input_ids, end_of_text_id)
        if isolates_by_positions(model):
            hidden = _last_hidden_state(model, input_ids, position_ids=positions)
        else:
            hidden = _document_by_document(model, input_ids, positions, places)
    if places is not None and hidden.ndim == 3:
        hidden = hidden.flatten(0, 1)[places]
    if not torch.is_autocast_enabled(hidden.device.type):
        hidden = hidden.to(output_head(model).weight.dtype)  # Mamba's are float32 in any model
    scale = _logit_scale(model.config.get_text_config())
    return hidden if scale == 1.0 else hidden * scale


def decoder(model: PreTrainedModel) -> nn.Module:
    """The module whose output the head of `model` takes."""
    found = model.get_decoder()
    return model.model if found is model or found is model.get_output_embeddings() else found


def isolates_by_positions(model: PreTrainedModel) -> bool:
    """Whether position ids that restart keep documents apart, as measured on a few tokens; once for each model."""
    if model.config._attn_implementation == FLASH_ATTENTION:  # heeds them in a batch of one row alone
        return False
    if model not in _isolates_by_positions:
        _isolates_by_positions[model] = _isolates(model, by_positions=True)
    return _isolates_by_positions[model]


def remember_isolation(model: PreTrainedModel, by_positions: bool) -> None:
    """Take what `isolates_by_positions` found of another copy of `model`, whose weights are not all here to measure."""
    _isolates_by_positions[model] = by_positions


def attention_without_flash(config: PreTrainedConfig) -> str:
    """sdpa, or eager for an attention soft-cap (Gemma 2), which torch's sdpa kernels do not know."""
    return "sdpa" if getattr(config.get_text_config(), "attn_logit_softcapping", None) is None else "eager"


def can_isolate(model: PreTrainedModel) -> bool:
    """Whether `hidden_states` isolates the documents of a window, as measured on a few tokens."""
    return isolates_by_positions(model) or _isolates(model, by_positions=False)


@torch.no_grad()
def _isolates(model: PreTrainedModel, *, by_positions: bool) -> bool:
    """Whether a document has the hidden states that it has alone, after either of two others in a batch of two rows.

    Isolated by position ids that restart, or as a row of its own.
    """
    ids = probe_ids(model, _PROBED_TOKENS)
    start = ids.shape[1] // 2 - 3  # no multiple of a power of two, at which some architectures begin a block
    first, second = ids[:, :start], ids[:, start:]
    rows = torch.cat([torch.cat([other, second], dim=1) for other in (first, first.flip(1))])
    positions = torch.cat([torch.arange(start), torch.arange(second.shape[1])]).to(ids.device).expand_as(rows)
    with torch.autocast(ids.device.type, enabled=False):
        alone = _last_hidden_state(model, second)
        try:
            if by_positions:
                together = _last_hidden_state(model, rows, position_ids=positions)
            else:
                together = _document_by_document(model, rows, positions)
        except torch.OutOfMemoryError:
            raise
        except (TypeError, ValueError, RuntimeError):  # takes no position ids, or none that restart
            return False
    return close(together[:, start:], alone.expand(2, -1, -1))


def relative_error(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest value that is expected; 0 where there is none."""
    found, expected = found.double(), expected.double()
    difference = (found - expected).abs().max().item()
    return difference and difference / expected.abs().max().item()


def close(found: Tensor, expected: Tensor) -> bool:
    """Whether two results of one computation differ by rounding alone: by TOLERANCE at most."""
    return found.shape == expected.shape and relative_error(found, expected) <= TOLERANCE[expected.dtype]


def probe_ids(model: PreTrainedModel, num_tokens: int) -> Tensor:
    """Different token ids [1, T] that any vocabulary has, as many as the model has positions for at most."""
    config = model.config.get_text_config()
    num_ids = cast(nn.Embedding, model.get_input_embeddings()).weight.shape[0]
    limit = getattr(config, "max_position_embeddings", None) or 0  # XLNet says -1
    length = min(num_tokens, limit) if limit > 0 else num_tokens
    return (7 * torch.arange(length, device=model.device) % (num_ids - 4) + 3)[None]


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


def _last_hidden_state(model: PreTrainedModel, input_ids: Tensor, **options: Tensor) -> Tensor:
    return decoder(model)(input_ids=input_ids, use_cache=False, **options).last_hidden_state


def _document_by_document(
    model: PreTrainedModel, input_ids: Tensor, positions: Tensor, wanted: Tensor | None = None
) -> Tensor:
    """Hidden states [B, T, D] with each document as a row of its own; no causal model sees the padding at its end.

    With `wanted` places, [n, D] there: documents without any, such as padding, are left out.
    """
    tokens = input_ids.flatten()
    starts = (positions.flatten() == 0).nonzero()[:, 0]
    lengths = torch.diff(starts, append=starts.new_tensor([len(tokens)]))
    if wanted is not None:
        chosen = (torch.searchsorted(starts, wanted, right=True) - 1).unique()
        chosen = chosen if len(chosen) else chosen.new_zeros(1)  # one at least, so that every parameter has a gradient
        starts, lengths = starts[chosen], lengths[chosen]
    places, pieces = [], []
    for documents in _batches(lengths.tolist(), len(tokens)):
        of_batch = torch.tensor(documents, device=tokens.device)
        offsets = torch.arange(int(lengths[of_batch].max()), device=tokens.device)
        is_token = offsets < lengths[of_batch, None]
        place = torch.where(is_token, starts[of_batch, None] + offsets, starts[of_batch, None])
        pieces.append(_last_hidden_state(model, tokens[place], attention_mask=is_token.long())[is_token])
        places.append(place[is_token])
    found, order = torch.cat(places).sort()
    if wanted is None:
        return torch.cat(pieces)[order].unflatten(0, input_ids.shape)
    return torch.cat(pieces)[order[torch.searchsorted(found, wanted)]]


def _batches(lengths: list[int], most: int) -> Iterator[list[int]]:
    """Indices of documents, the longest first, in batches of at most `most` tokens with their padding."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batch and lengths[batch[0]] * (len(batch) + 1) > most:
            yield batch
            batch = []
        batch.append(index)
    yield batch
