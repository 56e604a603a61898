"""The router's auxiliary loss is Transformers' own, by the student's coefficient, however a step is cut."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from rskd.cache.loader import CacheBatch
from rskd.config import ObjectiveConfig, StudentConfig, TrainConfig
from rskd.errors import ConfigError
from rskd.models.load import load_model
from rskd.student.architecture import student_architecture
from rskd.student.router_loss import router_loss
from rskd.student.sharding import replicate
from rskd.student.trainer import StudentLoss, make_optimizer, train_step

VOCAB, ROWS, SEQ_LEN, COEFFICIENT = 50, 4, 8, 0.3
CPU = torch.device("cpu")
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "output_router_logits": True,
    "router_aux_loss_coef": COEFFICIENT,
    "initializer_range": 0.3,
}
ROUTERS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "jetmoe": {"num_local_experts": 4, "num_experts_per_tok": 2, "kv_channels": 8, "aux_loss_coef": COEFFICIENT},
}


def _student(architecture: str = "mixtral", **changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **SIZES | ROUTERS[architecture] | changes)
    return AutoModelForCausalLM.from_config(config).eval()


def _ids() -> torch.Tensor:
    return torch.randint(VOCAB, (ROWS, SEQ_LEN + 1), generator=torch.Generator().manual_seed(1))


def _loss(student: PreTrainedModel) -> StudentLoss:
    return StudentLoss(student, ObjectiveConfig(kind="ce"), vocab_size=VOCAB)


def _transformers_own(student: PreTrainedModel, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean cross-entropy and auxiliary loss of windows [B, T+1]."""
    output = student(input_ids=ids[:, :-1], output_router_logits=True)
    return cross_entropy(output.logits.flatten(0, 1), ids[:, 1:].flatten()), output.aux_loss


@pytest.mark.parametrize("architecture", ROUTERS)
def test_value_and_gradient_are_those_of_transformers(architecture: str):
    student, ids = _student(architecture), _ids()
    ce, auxiliary = _transformers_own(student, ids)
    wanted = torch.autograd.grad(ce + COEFFICIENT * auxiliary, list(student.parameters()), allow_unused=True)
    loss = _loss(student)
    summed = loss(ids[:, :-1], ids[:, 1:], None, None)
    assert loss.last_router_loss is not None
    assert loss.last_router_loss.item() == pytest.approx(auxiliary.item(), rel=1e-6)
    found = torch.autograd.grad(summed / (ROWS * SEQ_LEN), list(student.parameters()), allow_unused=True)
    for a, b in zip(wanted, found):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_student_that_does_not_ask_has_none():
    assert router_loss(_student(output_router_logits=False)) is None
    assert _loss(_student(output_router_logits=False)).router_loss is None


def test_without_a_layer_of_experts_it_is_0():
    metrics = _step(_student("qwen3_moe", mlp_only_layers=[0, 1]))
    assert metrics["router_aux_loss"] == 0
    assert metrics["loss"] > 0


def _step(student: PreTrainedModel, rows: slice = slice(None), **changes: Any) -> dict[str, float]:
    config = TrainConfig(
        **{"global_batch": ROWS, "micro_batch": ROWS, "precision": "float32", "grad_clip": 1e9} | changes
    )
    ids = _ids()[rows]
    batch = CacheBatch(0, 0, torch.arange(len(ids)), ids[:, :-1], ids[:, 1:], None, {})
    optimizer = make_optimizer(student, config)
    return train_step(replicate(_loss(student), config, CPU), optimizer, batch, config, step=0, device=CPU)


def test_it_is_logged_apart_from_the_loss():
    student = _student()
    ce, auxiliary = (value.item() for value in _transformers_own(student, _ids()))
    metrics = _step(student)
    assert metrics["loss"] == pytest.approx(ce, rel=1e-5)
    assert metrics["router_aux_loss"] == pytest.approx(auxiliary, rel=1e-5)
    assert "router_aux_loss" not in _step(_student(output_router_logits=False))


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_of_micro_batches_it_is_the_mean_weighted_by_tokens(micro_batch: int):
    student = _student()
    pieces = [(len(rows), _transformers_own(student, rows)) for rows in _ids().split(micro_batch)]
    ce = sum(rows * own[0] for rows, own in pieces) / ROWS
    auxiliary = sum(rows * own[1] for rows, own in pieces) / ROWS
    wanted = torch.autograd.grad(ce + COEFFICIENT * auxiliary, list(student.parameters()))
    metrics = _step(student, micro_batch=micro_batch)
    assert metrics["loss"] == pytest.approx(ce.item(), rel=1e-5)
    assert metrics["router_aux_loss"] == pytest.approx(auxiliary.item(), rel=1e-5)
    assert metrics["grad_norm"] == pytest.approx(torch.stack([g.norm() for g in wanted]).norm().item(), rel=1e-4)


def test_two_workers_take_the_step_of_micro_batches_of_as_many_windows(tmp_path: Path):
    student = _student()
    alone = _step(student, micro_batch=2)
    command = [sys.executable, __file__]
    workers = [subprocess.Popen([*command, str(rank), str(tmp_path)]) for rank in range(2)]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == pytest.approx(alone, rel=1e-5)
        weights = torch.load(tmp_path / f"{rank}.pt")
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(weights, student.parameters()))


def test_a_loss_of_another_form_is_refused_before_training(tmp_path: Path):
    changes = {"num_experts": 16, "num_experts_per_tok": 2, "is_moe": True, "output_router_logits": True}
    AutoConfig.for_model("doge", **SIZES | changes).save_pretrained(tmp_path)
    fit = {"vocab_size": VOCAB, "seq_len": SEQ_LEN, "end_of_text_id": 0}
    with pytest.raises(
        ConfigError, match=r"architecture doge .* set output_router_logits to false in its config\.json"
    ):
        student_architecture(StudentConfig(model=str(tmp_path)), teacher_dir="unused", **fit)


def _worker(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    student = _student()
    metrics = _step(student, slice(2 * rank, 2 * rank + 2))
    (folder / f"{rank}.json").write_text(json.dumps(metrics))
    torch.save([p.detach() for p in student.parameters()], folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    _worker(int(sys.argv[1]), Path(sys.argv[2]))


def test_the_first_step_of_a_resumed_student_does_not_count_the_passes_that_measured_it(tmp_path):
    _student().save_pretrained(tmp_path)
    student = load_model(str(tmp_path), isolated=True)
    loss = StudentLoss(student, ObjectiveConfig(kind="ce"), vocab_size=VOCAB, end_of_text_id=3)
    ids = _ids()
    auxiliary = []
    for _ in range(2):
        loss(ids[:, :-1], ids[:, 1:], None, None)
        assert loss.last_router_loss is not None
        auxiliary.append(loss.last_router_loss.item())
    assert auxiliary[0] == auxiliary[1]
