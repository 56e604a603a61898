"""A student on its device, by itself, as a replica (DDP), or sharded over the workers (FSDP2).

    rank 0: whole student on its CPU ─┐
    every rank: its modules, without weights ─► fully_shard(each decoder block), fully_shard(student and loss)
                                      └─► broadcast, tensor by tensor: every rank keeps its shard

Sharded, a worker of n holds 1/n of the fp32 weights, gradients and moments, and the whole weights of one block at a
time. The head is whole where the loss runs, since both are in one forward. Gradients are averaged, as by DDP.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.distributed as dist
from accelerate import init_empty_weights
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM, PreTrainedModel

from rskd.config import TrainConfig
from rskd.errors import ConfigError
from rskd.models.causal_lm import isolates_by_positions, remember_isolation
from rskd.student.blocks import decoder_blocks, prepare_blocks
from rskd.student.shards import weights

MakeLoss = Callable[[PreTrainedModel], nn.Module]


def distribute(
    build: Callable[[], PreTrainedModel], make_loss: MakeLoss, config: TrainConfig, device: torch.device
) -> nn.Module:
    """The student that `build` gives, within the module that `make_loss` makes of it, on `device` and over all ranks.

    Replicated, `build` is called on every rank and has to give the same weights; sharded, on rank 0 alone. What comes
    back is called like that module. Raises what both raise, and ConfigError for a student that cannot be sharded.
    """
    if config.sharding == "full":
        return _sharded(build, make_loss, config, device)
    return replicate(make_loss(build()), config, device)


def replicate(loss: nn.Module, config: TrainConfig, device: torch.device) -> nn.Module:
    """The whole of `loss`, which holds a student, on every rank: as it is where there is one, else wrapped in DDP."""
    prepare_blocks(student_of(loss), config)
    loss.to(device).eval()  # eval: no dropout
    if world_size() == 1:
        return loss
    device_ids = [device] if device.type == "cuda" else None
    return DistributedDataParallel(loss, device_ids=device_ids, gradient_as_bucket_view=True)


def _sharded(
    build: Callable[[], PreTrainedModel], make_loss: MakeLoss, config: TrainConfig, device: torch.device
) -> nn.Module:
    whole = build() if dist.get_rank() == 0 else None
    facts: list[Any] = [None if whole is None else (whole.config, isolates_by_positions(whole))]
    dist.broadcast_object_list(facts, device=device)
    architecture, isolates = facts[0]
    student = _without_weights(architecture)
    student.tie_weights()
    remember_isolation(student, isolates)
    loss = make_loss(student).eval()
    if not isolates and getattr(loss, "end_of_text_id", None) is not None:
        raise ConfigError(
            "train.sharding=full needs a student that keeps documents apart by their positions, and "
            f"{architecture.model_type} with attention {architecture._attn_implementation} does not: set "
            "student.attention: sdpa if it has that, else sharding: none"
        )
    prepare_blocks(student, config)
    _shard(loss, student, config, device)
    loss._apply(lambda tensor: torch.empty_like(tensor, device=device) if tensor.is_meta else tensor.to(device))
    _scatter(None if whole is None else weights(whole), weights(student), device)
    return loss


def _without_weights(architecture) -> PreTrainedModel:
    """A model whose weights are on the meta device, and its buffers on the CPU: not all of them are in a checkpoint."""
    with init_empty_weights(include_buffers=False):
        return AutoModelForCausalLM.from_config(
            architecture, dtype=torch.float32, attn_implementation=architecture._attn_implementation
        )


def _shard(loss: nn.Module, student: PreTrainedModel, config: TrainConfig, device: torch.device) -> None:
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    dtype = torch.bfloat16 if config.precision == "bfloat16" else None
    reduced = torch.float32 if dtype else None
    blocks = decoder_blocks(student, "train.sharding=full")
    parameters = [id(parameter) for block in blocks for parameter in block.parameters()]
    if len(set(parameters)) < len(parameters):
        raise ConfigError(
            f"train.sharding=full is not possible for architecture {student.config.model_type} (its layers share "
            "weights): set sharding: none"
        )
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=reduced))
    whole = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=reduced, cast_forward_inputs=False)
    fully_shard(loss, mesh=mesh, mp_policy=whole)


@torch.no_grad()
def _scatter(whole: dict[str, Tensor] | None, shards: dict[str, Tensor], device: torch.device) -> None:
    """Copy the tensors that rank 0 has into those of all ranks, one at a time."""
    for name, shard in shards.items():
        tensor = torch.empty(shard.shape, dtype=shard.dtype, device=device) if whole is None else whole[name].to(device)
        if isinstance(shard, DTensor):
            shard.copy_(distribute_tensor(tensor, shard.device_mesh, shard.placements))
        else:
            dist.broadcast(tensor, src=0)
            shard.copy_(tensor)


def unwrapped(loss: nn.Module) -> nn.Module:
    """The module that `make_loss` made, within what `distribute` gave."""
    return cast(nn.Module, loss.module) if isinstance(loss, DistributedDataParallel) else loss


def student_of(loss: nn.Module) -> PreTrainedModel:
    """Its student."""
    return cast(PreTrainedModel, unwrapped(loss).student)


def world_size() -> int:
    """The number of ranks that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1
