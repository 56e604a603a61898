"""Small training runs on one device, for the checks of a GPU: the same batches, whatever holds the student."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.distributed as dist
from devices import DEVICE
from transformers import LlamaConfig, LlamaForCausalLM

from rskd.cache.loader import CacheBatch
from rskd.config import ObjectiveConfig, TrainConfig
from rskd.sparse_targets import IGNORE_INDEX, SparseTargets
from rskd.student.sharding import distribute, student_of
from rskd.student.trainer import StudentLoss, make_optimizer, train_step

VOCAB, SEQ_LEN, UNIQUE, ROWS, STEPS = 499, 64, 7, 6, 5


@contextmanager
def one_rank() -> Iterator[None]:
    """A process group of this process alone, as sharding needs it."""
    backend = "nccl" if DEVICE.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def make_student(**sizes) -> LlamaForCausalLM:
    """A Llama of four layers with random weights and a padded vocabulary, the same each time."""
    defaults = {
        "vocab_size": VOCAB + 13,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "initializer_range": 0.1,
    }
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**defaults | sizes))


def make_batch(step: int, rows: int = ROWS, seq_len: int = SEQ_LEN) -> CacheBatch:
    """A batch of so many windows, of which one and some positions of the others have no loss."""
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(VOCAB, (rows, seq_len + 1), generator=generator)
    unique = torch.randint(VOCAB, (rows, seq_len, UNIQUE), generator=generator)
    weights = torch.rand(rows, seq_len, UNIQUE, generator=generator)
    labels = ids[:, 1:].clone()
    labels[0] = IGNORE_INDEX
    labels[1:, ::3] = IGNORE_INDEX
    targets = SparseTargets(unique, weights / weights.sum(-1, keepdim=True))
    return CacheBatch(step, 0, torch.arange(rows), ids[:, :-1], labels, targets, {}, masked=True)


def losses(
    objective: ObjectiveConfig | None = None, *, device: torch.device = DEVICE, precision: str = "float32", **how
) -> list[float]:
    """Of each step of a run; `how` are settings of `train`. full_kd has a teacher of the student's own form."""
    config = TrainConfig(
        steps=STEPS, global_batch=ROWS, micro_batch=2, lr=3e-3, min_lr=1e-3, precision=precision, **how
    )  # pyright: ignore[reportArgumentType]
    make_loss = partial(
        StudentLoss,
        objective=objective or ObjectiveConfig(),
        vocab_size=VOCAB,
        end_of_text_id=0,
        teacher_logits=_random_logits,
    )
    loss = distribute(make_student, make_loss, config, device)
    optimizer = make_optimizer(student_of(loss), config)
    return [
        train_step(loss, optimizer, make_batch(step), config, step=step, device=device)["loss"] for step in range(STEPS)
    ]


def _random_logits(input_ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Logits [n, V] at `places` that depend on the token there alone."""
    table = 3 * torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(1))
    return table.to(input_ids.device)[input_ids.flatten()[places]]
