"""What a model must hold to be distilled from or into: measured on a few tokens when it is loaded or built.

    model ─► check_computation: its own logits? no token sees the next? documents isolated? ─► or ConfigError by name

Each is a property of the architecture as this Transformers computes it, so nothing here knows an architecture by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from rskd.errors import ConfigError, first_line
from rskd.models.causal_lm import (
    FLASH_ATTENTION,
    attention_without_flash,
    can_isolate,
    close,
    hidden_states,
    output_head,
    probe_ids,
)

_PROBED_TOKENS = 72  # more than a chunk of 64, from which on some architectures compute in another way


@torch.no_grad()
def check_computation(model: PreTrainedModel, named: str, *, isolated: bool = False) -> None:
    """ConfigError, naming `named` and its architecture, if rskd would compute something else than the model does.

    Checked: `output_head(hidden_states)` gives the logits of the model's own forward pass; changing the last token
    changes nothing before it; where documents are to be `isolated`, that each gets what it gets alone. Costs three
    passes over 72 tokens, and up to four over 64 or 128 more for isolation.
    """
    ids = probe_ids(model, _PROBED_TOKENS)
    with torch.autocast(ids.device.type, enabled=False), runnable(model):
        try:
            expected = model(input_ids=ids, use_cache=False).logits
            hidden = hidden_states(model, ids)
            found = output_head(model).logits(hidden).to(expected.dtype)
            found = found[..., : expected.shape[-1]]  # some leave out their padding
            other = hidden_states(model, torch.cat([ids[:, :-1], ids[:, :1]], dim=1))
            apart = not isolated or can_isolate(model)
        except torch.OutOfMemoryError:
            raise
        except (AttributeError, IndexError, TypeError, ValueError, RuntimeError) as error:
            dtype = str(model.dtype).removeprefix("torch.")
            problem = f"cannot be run as a causal LM in {dtype} ({first_line(error)})"
            raise _refused(model, named, problem, "choose another model or dtype") from None
    if not close(found, expected):
        raise _refused(model, named, "computes its logits in another way than from its last hidden states and its head")
    if not close(other[:, :-1], hidden[:, :-1]):
        raise _refused(model, named, "lets a token see the tokens after it: it is no causal LM")
    if not apart:
        raise _refused(model, named, "cannot keep documents of a window apart", "set corpus.isolate_documents=false")


@contextmanager
def runnable(model: PreTrainedModel) -> Iterator[None]:
    """Another attention where FlashAttention cannot run: a student has its GPU and half precision in training alone."""
    flash = model.config._attn_implementation == FLASH_ATTENTION
    if not flash or (model.device.type == "cuda" and model.dtype != torch.float32):
        yield
        return
    model.config._attn_implementation = attention_without_flash(model.config)
    try:
        yield
    finally:
        model.config._attn_implementation = FLASH_ATTENTION


def _refused(model: PreTrainedModel, named: str, problem: str, fix: str = "choose another model") -> ConfigError:
    return ConfigError(f"{named}: {type(model).__name__} {problem}: {fix}")
