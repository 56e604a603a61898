"""What is done to each decoder block before training: compilation, and activation checkpointing around it.

    block.forward ─► torch.compile (train.compile) ─► checkpoint (train.activation_checkpointing: blocks)

With checkpointing the backward pass keeps only the input of each block and recomputes the rest: about a third more
computation, for the activations of one block instead of all. Parameters keep their names.
"""

from __future__ import annotations

import os
import shutil
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from rskd.config import TrainConfig
from rskd.errors import ConfigError
from rskd.models.decoder_layers import NoLayersError, decoder_layers


def decoder_blocks(student: PreTrainedModel, wanted_by: str) -> nn.ModuleList:
    """The decoder blocks of a student. ConfigError, naming the setting that wants them, where it has no such list."""
    try:
        return decoder_layers(student)[1]
    except NoLayersError as error:
        raise ConfigError(
            f"{wanted_by} is not possible for architecture {student.config.model_type} ({error}): remove it"
        ) from None


def prepare_blocks(student: PreTrainedModel, config: TrainConfig) -> None:
    """Compile and checkpoint the decoder blocks as `config` says. The student has no dropout (`eval`)."""
    if config.compile:
        _expect_compiler()
        for block in decoder_blocks(student, "train.compile=true"):
            block.forward = torch.compile(block.forward)
    if config.activation_checkpointing == "blocks":
        for block in decoder_blocks(student, "train.activation_checkpointing=blocks"):
            block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)


def _expect_compiler() -> None:
    compiler = os.environ.get("CXX") or "g++"
    if not (shutil.which(compiler) or shutil.which("clang++")):
        raise ConfigError(
            f"train.compile=true needs a C++ compiler, and there is no {compiler}: install it, or remove it"
        )
