"""Losses and gradients of every implementation against a dense float64 reference.

The relative error (2-norm) may be no worse than that of the naive computation in the same precision, plus a tolerance.

Shapes: N tokens, D hidden, V vocabulary, K target entries.
"""

import pytest
import torch
import torch.nn.functional as F
from devices import DEVICE
from torch import Tensor

from rskd.sparse_targets import SparseTargets
from rskd.student import fused_loss, triton_loss
from rskd.student.objective import sparse_kd_loss

pytestmark = pytest.mark.filterwarnings("ignore::rskd.errors.BiasWarning")
IMPLS = ["eager", "chunked"]
if triton_loss.why_not(DEVICE) is None:  # on a GPU, or in the interpreter: test_triton_loss runs these tests there
    IMPLS.append("triton")
SHAPES = [(1, 8, 32, 1), (17, 24, 129, 7), (63, 40, 1031, 13)]  # N, D, V, K
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2**-8}  # about one more rounding


class Case:
    """A batch with repeated ids, padding, masses other than 1, ignored tokens, token weights and upstream gradients."""

    def __init__(self, shape: tuple[int, int, int, int], dtype: torch.dtype = torch.float32):
        num_tokens, dim, self.vocab_size, num_unique = shape
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(num_tokens, dim, generator=generator)
        weight = 0.5 * torch.randn(self.vocab_size, dim, generator=generator)
        self.hidden, self.weight = (tensor.to(DEVICE, dtype).requires_grad_() for tensor in (hidden, weight))
        ids = torch.randint(self.vocab_size, (num_tokens, num_unique), generator=generator)
        weights = torch.rand(num_tokens, num_unique, generator=generator) * 3 / num_unique
        if num_unique > 2:
            ids[:, 1] = ids[:, 0]
            ids[:, -1], weights[:, -1] = 0, 0.0
        self.targets = SparseTargets(ids, weights).to(DEVICE)
        self.labels = torch.randint(self.vocab_size, (num_tokens,), generator=generator).to(DEVICE)
        self.labels[1::5] = -100
        self.token_weights = 0.5 + torch.rand(num_tokens, generator=generator).to(DEVICE)
        self.upstream = torch.randn(num_tokens, generator=generator).to(DEVICE)

    @property
    def inputs(self) -> tuple[Tensor, Tensor]:
        return self.hidden, self.weight

    def loss(self, ce_weight: float, reduction: str, impl: str) -> Tensor:
        return sparse_kd_loss(
            *self.inputs,
            self.targets,
            self.labels,
            ce_weight=ce_weight,
            token_weights=self.token_weights,
            reduction=reduction,
            impl=impl,
        )

    def dense(self, logits: Tensor, ce_weight: float, reduction: str) -> Tensor:
        """The same loss of whole logits [N, V], as one would write it."""
        kd = F.cross_entropy(logits, self.targets.to_dense(self.vocab_size).to(logits.dtype), reduction="none")
        ce = F.cross_entropy(logits, self.labels, reduction="none")
        losses = (ce_weight * ce + (1 - ce_weight) * kd) * self.token_weights * (self.labels >= 0)
        if reduction == "none":
            return losses
        return losses.sum() / ((self.labels >= 0).sum() if reduction == "mean" else 1)

    def outcome(self, loss: Tensor, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        """Loss and gradients in float64."""
        upstream = self.upstream.to(loss.dtype) if loss.ndim else torch.tensor(0.7, dtype=loss.dtype, device=DEVICE)
        return [t.detach().double() for t in (loss, *torch.autograd.grad(loss, inputs, upstream))]

    def reference(self, ce_weight: float, reduction: str) -> list[Tensor]:
        hidden, weight = (tensor.detach().double().requires_grad_() for tensor in self.inputs)
        return self.outcome(self.dense(hidden @ weight.T, ce_weight, reduction), (hidden, weight))


def assert_no_worse(actual: list[Tensor], naive: list[Tensor], truth: list[Tensor], tolerance: float) -> None:
    for name, mine, theirs, true in zip(("loss", "grad_hidden", "grad_weight"), actual, naive, truth):
        error, naive_error = ((t - true).norm() / true.norm() for t in (mine, theirs))
        assert error <= naive_error + tolerance, f"{name}: {error:.2e}, naive {naive_error:.2e}"


@pytest.fixture(autouse=True)
def _several_chunks(monkeypatch):
    monkeypatch.setattr(fused_loss, "_chunk_rows", lambda *_: 4)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ce_weight", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradients_agree_with_dense_float64(impl, dtype, shape, ce_weight, reduction):
    case = Case(shape, dtype)
    actual = case.outcome(case.loss(ce_weight, reduction, impl), case.inputs)
    naive = case.outcome(case.dense(case.hidden @ case.weight.T, ce_weight, reduction), case.inputs)
    assert_no_worse(actual, naive, case.reference(ce_weight, reduction), TOLERANCE[dtype])


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_autocast_keeps_the_softmax_in_float32(impl, reduction):
    case = Case(SHAPES[-1])
    with torch.autocast(DEVICE.type, torch.bfloat16):
        loss = case.loss(0.1, reduction, impl)
        naive = case.dense(F.linear(*case.inputs), 0.1, reduction)
    assert loss.dtype == torch.float32
    actual = case.outcome(loss, case.inputs)
    assert_no_worse(actual, case.outcome(naive, case.inputs), case.reference(0.1, reduction), TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_chunked_passes_gradcheck_in_float64(reduction):
    case = Case((5, 4, 11, 3))
    hidden, weight = (tensor.detach().double().requires_grad_() for tensor in case.inputs)
    bias = torch.linspace(-1, 1, 11, dtype=torch.float64, device=DEVICE, requires_grad=True)

    def loss(hidden, weight, bias):
        return sparse_kd_loss(
            hidden,
            weight,
            case.targets,
            case.labels,
            ce_weight=0.3,
            bias=bias,
            softcap=2.0,
            vocab_size=11,
            reduction=reduction,
            impl="chunked",
        )

    assert torch.autograd.gradcheck(loss, (hidden, weight, bias))


@pytest.mark.parametrize("impl", ["eager", "chunked"])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("ce_weight", [0.0, 0.1])
@pytest.mark.parametrize("student_mass", ["spread", "on the entries"])
def test_ghost_token_agrees_with_dense_float64(impl, dtype, ce_weight, student_mass):
    """Also where the student leaves 1e-7 to the others, of which 1 - Σp in float32 has no digit right."""
    generator = torch.Generator().manual_seed(0)
    num_tokens, dim, vocab_size = 19, 24, 67
    hidden = torch.randn(num_tokens, dim, generator=generator)
    weight = 0.5 * torch.randn(vocab_size, dim, generator=generator)
    hidden, weight = (tensor.to(DEVICE, dtype).requires_grad_() for tensor in (hidden, weight))
    bias = torch.zeros(vocab_size, dtype=dtype, device=DEVICE)
    teacher = 2 * torch.randn(num_tokens, vocab_size, generator=generator).to(DEVICE)
    if student_mass == "on the entries":
        bias[:6] = 20.0
        teacher[:, :6] += 12.0
    kept, ids = teacher.softmax(-1).topk(5)
    targets = SparseTargets(
        torch.cat([ids, torch.zeros_like(ids[:, :1])], 1), torch.cat([kept, torch.zeros_like(kept[:, :1])], 1)
    )
    labels = torch.randint(vocab_size, (num_tokens,), generator=generator).to(DEVICE)

    def dense(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        log_q = F.linear(hidden, weight, bias).log_softmax(-1)
        others = torch.ones_like(log_q).scatter(1, ids, 0).bool()
        ghost = log_q.masked_fill(~others, -torch.inf).logsumexp(-1)
        kd = -(kept * log_q.gather(1, ids)).sum(-1) - (1 - kept.sum(-1)).clamp(min=0) * ghost
        return (ce_weight * F.nll_loss(log_q, labels, reduction="none") + (1 - ce_weight) * kd).mean()

    def outcome(loss: Tensor, inputs: tuple[Tensor, Tensor]) -> list[Tensor]:
        return [tensor.detach().double() for tensor in (loss, *torch.autograd.grad(loss, inputs))]

    options = {"ce_weight": ce_weight, "bias": bias, "residual": "ghost", "impl": impl}
    actual = outcome(sparse_kd_loss(hidden, weight, targets, labels, **options), (hidden, weight))
    naive = outcome(dense(hidden, weight, bias), (hidden, weight))
    exact = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    truth = outcome(dense(*exact, bias.double()), (exact[0], exact[1]))
    assert_no_worse(actual, naive, truth, TOLERANCE[dtype])


def test_ghost_token_has_the_gradient_of_the_paper():
    """Eq. of A.5: p - t on the entries, Σ(t - p) / (1 - Σp) · p on the others."""
    z = torch.tensor([[1.0, 0.5, -0.3, 0.2]], dtype=torch.float64, device=DEVICE, requires_grad=True)
    targets = SparseTargets(torch.tensor([[2, 0]]), torch.tensor([[0.2, 0.5]])).to(DEVICE)
    loss = sparse_kd_loss(
        z, torch.eye(4, dtype=torch.float64, device=DEVICE), targets, residual="ghost", impl="chunked"
    )
    (gradient,) = torch.autograd.grad(loss, z)
    p = z.detach().softmax(-1)[0]
    inside = p[2] + p[0]
    expected = (0.7 - inside) / (1 - inside) * p
    expected[[2, 0]] = p[[2, 0]] - torch.tensor([0.2, 0.5], dtype=torch.float64, device=DEVICE)
    torch.testing.assert_close(gradient[0], expected, rtol=1e-6, atol=1e-7)


def test_sampled_targets_give_the_gradient_of_full_kd_on_average():
    """What the whole method rests on: the mean of sampled gradients is the gradient of the full distribution."""
    from rskd.teacher.sampling import sample_targets

    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(1, 12, generator=generator).to(DEVICE)
    weight = torch.randn(200, 12, generator=generator).to(DEVICE)
    teacher_logits = 2 * torch.randn(1, 200, generator=generator).to(DEVICE)
    num_keys = 5000
    hidden_S = hidden.expand(num_keys, -1).clone().requires_grad_()

    def gradients(targets: SparseTargets) -> Tensor:
        return torch.autograd.grad(sparse_kd_loss(hidden_S, weight, targets, reduction="sum"), hidden_S)[0]

    truth = torch.autograd.grad(
        F.cross_entropy(hidden_S @ weight.T, teacher_logits.softmax(-1).expand(num_keys, -1), reduction="sum"), hidden_S
    )[0][0]
    for options, unbiased in (
        ({"method": "systematic"}, True),
        ({"method": "random"}, True),
        ({"method": "top_k", "k": 10}, False),
    ):
        sampled = gradients(sample_targets(teacher_logits.expand(num_keys, -1), **options))
        z = (sampled.mean(0) - truth) / (sampled.std(0) / num_keys**0.5 + 1e-6)
        assert (z.abs().max() < 5) == unbiased, options
