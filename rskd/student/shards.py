"""The state of a sharded run on disk: every rank writes its shards by torch.distributed.checkpoint, as safetensors.

    begin_shards: weights and moments ─► copy on the host ─► (in the background) shards/shard-<rank>-….safetensors
    load_optimizer ◄─ the shards that a rank needs, whatever the number of ranks that wrote, and that read
    restored_student, saveable_student ◄─ all weights

Nothing is pickled.
"""

from __future__ import annotations

import warnings
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from transformers import PreTrainedModel

from rskd.models.load import load_config, load_model, model_without_weights, new_model

FOLDER = "shards"


def begin_shards(directory: Path, student: nn.Module, optimizer: Optimizer, group: dist.ProcessGroup) -> Future[Any]:
    """Copy this rank's state to the host, and begin to write it to the folder `shards` of `directory`.

    Called on all ranks; `group` is of CPU tensors (gloo) and used until the future is done.
    """
    writer = HuggingFaceStorageWriter(str(directory / FOLDER), save_distributed=True)
    saved = dcp.async_save(weights(student) | moments(optimizer), storage_writer=writer, process_group=group)
    assert isinstance(saved, Future)
    return saved


def load_optimizer(directory: Path, optimizer: Optimizer) -> None:
    """Put the moments of a checkpoint, sharded or not, into a fresh optimizer, whose parameters are sharded or not.

    Where they are it is called on all ranks.
    """
    reader = HuggingFaceStorageReader(str(directory / FOLDER if is_sharded(directory) else directory))
    sizes = {key: cast(Any, stored).size for key, stored in reader.read_metadata().state_dict_metadata.items()}
    parameters = dict(_parameters(optimizer))
    found: dict[str, Tensor] = {}
    for key, size in sizes.items():
        name, slash, _ = key.rpartition("/")
        if slash:
            like = parameters[name].detach()
            found[key] = torch.zeros_like(like) if size == like.shape else torch.zeros(size, device=like.device)
    _load(found, reader)
    for key, moment in found.items():
        name, _, kind = key.rpartition("/")
        optimizer.state[parameters[name]][kind] = moment


def restored_student(directory: Path, attention: str, *, isolated: bool) -> PreTrainedModel:
    """The whole student of a checkpoint, sharded or not, on the CPU, to go on with; as `load_model`."""
    if not is_sharded(directory):
        return load_model(str(directory), attention, isolated=isolated)
    named = f"checkpoint {directory}"
    student = new_model(load_config(str(directory)), attention, seed=0, isolated=isolated, named=named)
    _load(weights(student), HuggingFaceStorageReader(str(directory / FOLDER)))
    return student


def saveable_student(directory: Path) -> PreTrainedModel:
    """The student of a sharded checkpoint, to be saved: it cannot compute, since it lacks what is in no checkpoint."""
    student = model_without_weights(load_config(str(directory)))
    student.to_empty(device="cpu")
    student.tie_weights()
    _load(weights(student), HuggingFaceStorageReader(str(directory / FOLDER)))
    return student


def moments(optimizer: Optimizer) -> dict[str, Tensor]:
    """The state of an optimizer as "<parameter>/<moment>"."""
    return {
        f"{name}/{moment}": tensor
        for name, parameter in _parameters(optimizer)
        for moment, tensor in optimizer.state.get(parameter, {}).items()
    }


def is_sharded(directory: Path) -> bool:
    """Whether a checkpoint was written by the ranks of a sharded run."""
    return (directory / FOLDER).is_dir()


def weights(student: nn.Module) -> dict[str, Tensor]:
    """What a state dict holds, with tied tensors once."""
    kept = student.state_dict().keys()
    return {
        name: tensor.detach()
        for named in (student.named_parameters(), student.named_buffers())
        for name, tensor in named
        if name in kept
    }


def _load(tensors: dict[str, Tensor], reader: HuggingFaceStorageReader) -> None:
    sharded = any(isinstance(tensor, DTensor) for tensor in tensors.values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that this process reads alone
        dcp.load(tensors, storage_reader=reader, no_dist=not sharded)


def _parameters(optimizer: Optimizer) -> list[tuple[str, Tensor]]:
    return [pair for group in optimizer.param_groups for pair in zip(group["param_names"], group["params"])]
