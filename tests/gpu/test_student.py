"""Training on the device: the CPU's losses in float32, the same ones however the student is held, bf16 near them."""

from collections.abc import Iterator

import pytest
import torch
from device_students import losses, make_batch, make_student, one_rank
from devices import DEVICE

from rskd.config import ObjectiveConfig, TrainConfig
from rskd.student import triton_loss
from rskd.student.sharding import replicate
from rskd.student.trainer import NonFiniteError, StudentLoss, make_optimizer, train_step

pytestmark = pytest.mark.gpu
OBJECTIVES = {
    "sparse_kd": ObjectiveConfig(),
    "sparse_kd and ce": ObjectiveConfig(ce_weight=0.1),
    "ce": ObjectiveConfig(kind="ce"),
    "full_kd": ObjectiveConfig(kind="full_kd"),
    "reverse": ObjectiveConfig(kind="full_kd", divergence="reverse"),
}
HELD = {
    "activation checkpointing": {"activation_checkpointing": "blocks"},
    "sharded": {"sharding": "full"},
    "sharded and checkpointing": {"sharding": "full", "activation_checkpointing": "blocks"},
}


@pytest.fixture(scope="module", autouse=True)
def _rank() -> Iterator[None]:
    with one_rank():
        yield


@pytest.mark.parametrize("name", OBJECTIVES)
def test_losses_are_the_cpus(name):
    found, wanted = losses(OBJECTIVES[name]), losses(OBJECTIVES[name], device=torch.device("cpu"))
    assert found == pytest.approx(wanted, rel=2e-4)
    assert found[-1] != found[0]


@pytest.mark.parametrize("name", HELD)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_losses_do_not_depend_on_how_the_student_is_held(name, precision):
    """In bf16 blocks that are sharded run in bf16 throughout, where autocast keeps norms in float32."""
    tolerance = 1e-5 if precision == "float32" else 1e-2
    assert losses(precision=precision, **HELD[name]) == pytest.approx(losses(precision=precision), rel=tolerance)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_bfloat16_is_near_float32(name):
    assert losses(OBJECTIVES[name], precision="bfloat16") == pytest.approx(losses(OBJECTIVES[name]), rel=1e-2)


@pytest.mark.skipif(triton_loss.why_not(DEVICE) is not None, reason="no Triton kernel here")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_implementation_of_the_loss_trains_alike(precision):
    by_impl = {
        impl: losses(ObjectiveConfig(impl=impl), precision=precision)  # pyright: ignore[reportArgumentType]
        for impl in ("eager", "chunked", "triton")
    }
    tolerance = 1e-5 if precision == "float32" else 1e-2
    for impl in ("chunked", "triton"):
        assert by_impl[impl] == pytest.approx(by_impl["eager"], rel=tolerance)


@pytest.mark.skipif(DEVICE.type == "cpu", reason="the peak is the GPU's")
def test_activation_checkpointing_saves_memory():
    peaks = {}
    for checkpointing in ("none", "blocks"):
        torch.cuda.reset_peak_memory_stats()
        losses(activation_checkpointing=checkpointing)
        peaks[checkpointing] = torch.cuda.max_memory_allocated()
    assert peaks["blocks"] < peaks["none"]


def test_a_step_that_is_not_finite_is_not_taken():
    config = TrainConfig(steps=1, global_batch=6, micro_batch=6, precision="float32")
    student = make_student()
    module = replicate(StudentLoss(student, ObjectiveConfig(), vocab_size=499), config, DEVICE)
    optimizer = make_optimizer(student, config)
    with torch.no_grad():
        student.model.layers[1].mlp.up_proj.weight[3, 5] = torch.inf
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    with pytest.raises(NonFiniteError, match="step 1"):
        train_step(module, optimizer, make_batch(0), config, step=0, device=DEVICE)
    for name, tensor in student.state_dict().items():
        assert torch.equal(tensor, before[name])
