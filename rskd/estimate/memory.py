"""The memory that training a student takes on each worker, on paper: what fits, before a GPU is rented.

    state      16 bytes a parameter: fp32 weight and gradient, AdamW's two moments; divided by the workers if sharded
    gathered   of a sharded student, the embeddings and head and two blocks, whole, in the precision of the step
    window     what one window keeps for the backward pass: 5D + 3F values a token and layer (D hidden, F of the
               feed-forward), or with activation checkpointing D a layer and one layer's all
    loss       one buffer of logits

tests/bench/bench_sharding.py measures the same on real ranks: on two CPU ranks of a 47M Llama (fp32, 2 windows of 512,
2026-11-27) it found 1126, 801, 908 and 516 MiB, where this says 1071, 776, 774 and 479.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from rskd.config import StudentSpec
from rskd.lineage.inputs import Inputs
from rskd.models.decoder_layers import depth
from rskd.models.load import model_without_weights
from rskd.student.architecture import student_architecture

GIB = 2**30
_STATE_BYTES = 16
_LOSS_BYTES = 2**28  # chunks of logits, and what the allocator keeps
_USABLE = 0.9  # of a GPU's memory
_VARIANTS = [(sharding, blocks) for sharding in ("none", "full") for blocks in ("none", "blocks")]


def student_memory(inputs: Inputs, spec: StudentSpec, *, workers: int, gpu_memory_gib: float | None) -> dict[str, Any]:
    """Bytes on each of `workers`, for every `sharding` and `activation_checkpointing` (`full+blocks`).

    Returns parameters, and for each: `state_bytes`, `window_bytes`, and `windows_that_fit` (the largest micro_batch;
    0: the student does not fit; None where the GPU's memory is not known).
    """
    head = inputs.corpus_head
    fit = {key: head["tokenizer"][key] for key in ("vocab_size", "end_of_text_id")} | {"seq_len": head["seq_len"]}
    architecture = student_architecture(spec.student, teacher_dir=inputs.teacher_dir, **fit)
    parameters = model_without_weights(architecture).num_parameters()
    found: dict[str, Any] = {"parameters": parameters}
    for sharding, blocks in _VARIANTS:
        name = f"{sharding}+blocks" if blocks == "blocks" else sharding
        found[name] = memory_of(
            architecture,
            parameters,
            seq_len=head["seq_len"],
            workers=workers if sharding == "full" else 1,
            checkpointed=blocks == "blocks",
            value_bytes=2 if spec.train.precision == "bfloat16" else 4,
            gpu_bytes=None if gpu_memory_gib is None else gpu_memory_gib * GIB,
        )
    return found


def memory_of(
    architecture: PreTrainedConfig,
    parameters: int,
    *,
    seq_len: int,
    workers: int,
    checkpointed: bool,
    value_bytes: int,
    gpu_bytes: float | None,
) -> dict[str, Any]:
    """One of the variants, with the student's state divided among `workers`."""
    text, layers = architecture.get_text_config(), depth(architecture)
    hidden = text.hidden_size
    feed_forward = getattr(text, "intermediate_size", None) or 4 * hidden
    embeddings = text.vocab_size * hidden
    state = _STATE_BYTES * parameters / workers
    if workers > 1:
        state += value_bytes * (2 * embeddings + 2 * max(0, parameters - embeddings) / layers)
    layer = value_bytes * (5 * hidden + 3 * feed_forward)
    window = seq_len * (layer + layers * value_bytes * hidden if checkpointed else layers * layer)
    fits = None
    if gpu_bytes is not None:
        fits = max(0, int((_USABLE * gpu_bytes - state - _LOSS_BYTES) // window))
    return {"state_bytes": round(state), "window_bytes": round(window), "windows_that_fit": fits}
