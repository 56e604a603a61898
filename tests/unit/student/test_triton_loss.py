"""The Triton kernel against its readable twin: on a GPU, or in Triton's interpreter in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from devices import DEVICE

from rskd.sparse_targets import SparseTargets
from rskd.student import fused_loss, triton_loss
from rskd.student.objective import full_kd_loss, sparse_kd_loss

TESTS = Path(__file__).parents[2]
needs_kernel = pytest.mark.skipif(triton_loss.why_not(DEVICE) is not None, reason="runs in the interpreter below")


@pytest.mark.skipif(triton_loss.why_not(torch.device("cpu")) is None, reason="this is the interpreter")
@pytest.mark.parametrize("which", ["not shape2", pytest.param("shape2", marks=pytest.mark.slow)])
def test_all_that_the_interpreter_can_run(which):
    """Triton decides when it is imported, so that a process of its own is needed."""
    numerics = TESTS / "numerics" / "test_gradients.py"
    command = [sys.executable, "-m", "pytest", "-q", "--durations=5", __file__, numerics, "-k", f"triton and {which}"]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, cwd=TESTS.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout


def made_target(num_tokens: int, vocab_size: int, num_unique: int) -> fused_loss.Target:
    """With repeated ids, padding, the last id of the vocabulary and an ignored token, where there is room."""
    generator = torch.Generator().manual_seed(num_unique)
    ids = torch.randint(vocab_size, (num_tokens, num_unique), generator=generator)
    coefficients = torch.rand(num_tokens, num_unique, generator=generator)
    ids[0, 0] = vocab_size - 1
    if num_unique > 2:
        ids[:, 1] = ids[:, 0]
        ids[:, -1], coefficients[:, -1] = 0, 0.0
    coefficients[num_tokens // 2] = 0
    return fused_loss.Target(ids.to(DEVICE), coefficients.to(DEVICE))


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize(
    ("num_tokens", "vocab_size", "num_unique"), [(1, 2, 1), (2, 1031, 1), (3, 300, 7), (2, 129, 40)]
)
def test_is_its_twin_on_odd_shapes(monkeypatch, dtype, softcap, num_tokens, vocab_size, num_unique):
    monkeypatch.setattr(triton_loss, "MAX_BLOCK", 256)
    target = made_target(num_tokens, vocab_size, num_unique)
    memory = 4 * torch.randn(num_tokens, vocab_size + 3, generator=torch.Generator().manual_seed(0)).to(DEVICE, dtype)
    logits, truth = memory.clone()[:, :vocab_size], memory[:, :vocab_size].double()
    losses = triton_loss.to_gradients(logits, target, softcap)
    true_losses = fused_loss.to_gradients(truth, target, softcap)
    torch.testing.assert_close(losses.double(), true_losses, rtol=1e-5, atol=1e-5)
    rounding = {torch.float32: 2e-6, torch.bfloat16: 2**-7, torch.float16: 2**-11}[dtype]  # the interpreter truncates
    torch.testing.assert_close(logits.double(), truth, rtol=rounding, atol=1e-6)


@needs_kernel
def test_writes_nothing_beyond_the_vocabulary():
    memory = torch.zeros(3, 80, device=DEVICE)
    triton_loss.to_gradients(memory[:, :77], made_target(3, 77, 4), None)
    assert memory[:, 77:].eq(0).all()
    assert memory[:, :77].ne(0).any()


@needs_kernel
def test_logits_far_apart_and_masked_stay_finite():
    logits = torch.tensor([[1e4, -1e4, 0.0], [-torch.inf, 3.0, 3.0]], device=DEVICE)
    target = fused_loss.Target(torch.tensor([[1], [2]], device=DEVICE), torch.ones(2, 1, device=DEVICE))
    losses = triton_loss.to_gradients(logits, target, None)
    torch.testing.assert_close(losses.cpu(), torch.tensor([2e4, 0.6931472]))
    torch.testing.assert_close(logits.cpu(), torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.5, -0.5]]))


@needs_kernel
def test_objective_with_bias_softcap_and_padded_vocabulary(monkeypatch):
    monkeypatch.setattr(fused_loss, "_chunk_rows", lambda *_: 3)
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (torch.randn(*shape, generator=generator).to(DEVICE) for shape in ((7, 6), (50, 6), (50,)))
    target = made_target(7, 45, 5)
    labels = torch.tensor([4, -100, 0, 44, 4, 1, 2], device=DEVICE)
    gradients = {}
    for impl in ("eager", "triton"):
        inputs = [tensor.clone().requires_grad_() for tensor in (hidden, weight, bias)]
        loss = sparse_kd_loss(
            *inputs[:2],
            SparseTargets(target.ids, target.coefficients),
            labels,
            ce_weight=0.2,
            bias=inputs[2],
            softcap=3.0,
            vocab_size=45,
            impl=impl,
        )
        gradients[impl] = (loss, *torch.autograd.grad(loss, inputs))
    torch.testing.assert_close(gradients["triton"], gradients["eager"], rtol=1e-4, atol=1e-6)


def test_compiles_for_a_gpu_that_is_not_here(tmp_path, monkeypatch):
    triton = pytest.importorskip("triton")
    if triton_loss.why_not(torch.device("cpu")) is None:
        pytest.skip("the interpreter compiles nothing")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    pointers = {"logits": "*bf16", "ids": "*i64", "coefficients": "*fp32", "losses": "*fp32"}
    scalars = {"stride": "i32", "vocab_size": "i32", "num_unique": "i32", "softcap": "fp32"}
    constants = {"has_softcap": True, "block_v": triton_loss.MAX_BLOCK, "block_k": 64}
    kernel = triton.jit(triton_loss._kernel)
    types = pointers | scalars | dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn=kernel, signature={name: types[name] for name in kernel.arg_names}, constexprs=constants)
    options = {"num_warps": triton_loss.NUM_WARPS}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert "bar.sync" in compiled.asm["ptx"]


@pytest.mark.skipif(triton_loss.why_not(torch.device("cpu")) is None, reason="the interpreter runs on a CPU")
def test_a_cpu_is_refused():
    targets = SparseTargets(torch.zeros(2, 1, dtype=torch.int64), torch.ones(2, 1))
    with pytest.raises(ValueError, match="needs a GPU: use impl='chunked'"):
        sparse_kd_loss(torch.ones(2, 3), torch.ones(5, 3), targets, impl="triton")


@needs_kernel
def test_full_kd_is_refused_and_auto_takes_another_way():
    hidden, weight, teacher_logits = torch.ones(2, 3), torch.ones(5, 3), torch.ones(2, 5)
    with pytest.raises(ValueError, match="sparse targets"):
        full_kd_loss(hidden.to(DEVICE), weight.to(DEVICE), teacher_logits.to(DEVICE), impl="triton")
    assert full_kd_loss(hidden.to(DEVICE), weight.to(DEVICE), teacher_logits.to(DEVICE)).isfinite()
