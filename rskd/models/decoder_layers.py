"""The list of layers of a decoder, under whatever name (`layers`, `h`, `blocks`) the architecture has for it."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

DEPTH = ("num_hidden_layers", "decoder_layers", "num_decoder_layers", "num_blocks")  # settings that count layers


class NoLayersError(Exception):
    """A model has no list of layers, or several."""


def depth(config: PreTrainedConfig) -> int:
    """The number of layers of a decoder."""
    text = config.get_text_config()
    return next(value for name in DEPTH[1:] + DEPTH[:1] if isinstance(value := getattr(text, name, None), int))


def decoder_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The decoder's list of layers, and its path in the model. Raises NoLayersError."""
    wanted = depth(model.config)
    lists = {path: module for path, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    within = tuple(f"{path}." for path in lists)
    found = [(path, one) for path, one in lists.items() if len(one) == wanted and not path.startswith(within)]
    if len(found) > 1:  # beside an encoder's of an image or of sound
        decoder = set(model.get_decoder().modules())
        found = [(path, one) for path, one in found if one in decoder]
    if len(found) != 1:
        raise NoLayersError(f"it has {len(found) or 'no'} lists of {wanted} layers")
    return found[0]
