"""Every target and loss of the paper: its gradient against the closed form in float64, and its bias under sampling.

Shapes: N tokens, D hidden, V vocabulary, K target entries.
"""

import warnings
from dataclasses import dataclass
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rskd.errors import BiasWarning
from rskd.sparse_targets import SparseTargets
from rskd.student import fused_loss
from rskd.student.divergence import UNLISTED_PROBABILITY
from rskd.student.objective import cross_entropy_loss, full_kd_loss, sparse_kd_loss
from rskd.teacher.sampling import sample_targets

pytestmark = pytest.mark.filterwarnings("ignore::rskd.errors.BiasWarning")
N, D, V, K = 23, 16, 131, 9
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2**-8}
DIVERGENCES = ("forward", "reverse", "forward_reverse", "mse", "l1")


@pytest.fixture(autouse=True)
def _several_chunks_and_tiles(monkeypatch):
    monkeypatch.setattr(fused_loss, "_chunk_rows", lambda *_: 8)
    monkeypatch.setattr(fused_loss, "TILE_BYTES_CPU", 3 * 4 * V)


@dataclass
class Batch:
    hidden: Tensor  # [N, D]
    weight: Tensor  # [V, D]
    teacher_logits: Tensor  # [N, V]
    labels: Tensor  # [N]

    @classmethod
    def make(cls, dtype: torch.dtype = torch.float64) -> "Batch":
        generator = torch.Generator().manual_seed(0)
        return cls(
            torch.randn(N, D, generator=generator).to(dtype).requires_grad_(),
            (0.5 * torch.randn(V, D, generator=generator)).to(dtype).requires_grad_(),
            2 * torch.randn(N, V, generator=generator),
            torch.randint(V, (N,), generator=generator),
        )

    @property
    def t(self) -> Tensor:
        return self.teacher_logits.double().softmax(-1)

    @property
    def p(self) -> Tensor:
        return (self.hidden.detach().double() @ self.weight.detach().double().T).softmax(-1)

    @property
    def one_hot(self) -> Tensor:
        return F.one_hot(self.labels, V).double()

    def gradients(self, loss: Tensor) -> list[Tensor]:
        return [gradient.double() for gradient in torch.autograd.grad(loss, (self.hidden, self.weight))]

    def through_head(self, logit_gradients: Tensor) -> list[Tensor]:
        """Gradients to hidden and weight of those [N, V] to the logits, in float64."""
        return [
            logit_gradients @ self.weight.detach().double(),
            logit_gradients.T @ self.hidden.detach().double(),
        ]


def assert_close(actual: list[Tensor], truth: list[Tensor], tolerance: float) -> None:
    for name, mine, true in zip(("grad_hidden", "grad_weight"), actual, truth):
        error = float((mine - true).norm() / true.norm())
        assert error <= tolerance, f"{name}: {error:.1e}"


def closed_form(batch: Batch, case: str, targets: SparseTargets) -> Tensor:
    """Gradients [N, V] to the logits, as the paper has them; w are the targets, rest = 1 - Σw."""
    p, t, w = batch.p, batch.t, targets.to_dense(V).double()
    rest = 1 - w.sum(-1, keepdim=True)
    if case == "ce":
        return p - batch.one_hot  # A.2
    if case == "full_kd":
        return p - t  # Eq. 1
    if case == "none":
        return w.sum(-1, keepdim=True) * p - w  # Eq. 4, 5
    if case == "smooth":
        return p - (w + rest / V)
    if case == "label":
        return p - (w + rest * batch.one_hot)
    listed = w > 0  # A.5
    inside = (p * listed).sum(-1, keepdim=True)
    return torch.where(listed, p - t, ((t - p) * listed).sum(-1, keepdim=True) / (1 - inside) * p)


def loss_of(batch: Batch, case: str, targets: SparseTargets, impl: str) -> Tensor:
    inputs = (batch.hidden, batch.weight)
    if case == "ce":
        return cross_entropy_loss(*inputs, batch.labels, impl=impl, reduction="sum")
    if case == "full_kd":
        return full_kd_loss(*inputs, batch.teacher_logits, impl=impl, reduction="sum")
    return sparse_kd_loss(*inputs, targets, batch.labels, residual=case, impl=impl, reduction="sum")


TARGETS = {
    "top_k": {"method": "top_k", "k": K},
    "top_p": {"method": "top_p", "k": 20, "p": 0.8},
    "random": {"method": "random", "num_samples": 30},
    "random, t = 0": {"method": "random", "num_samples": 30, "temperature": 0.0},
    "random, t = 0.8": {"method": "random", "num_samples": 30, "temperature": 0.8},
    "random, t = 1.2": {"method": "random", "num_samples": 30, "temperature": 1.2},
    "systematic": {"method": "systematic", "num_samples": 30},
}
CASES = [
    *[(name, "none") for name in TARGETS],
    *[(name, residual) for name in ("top_k", "top_p") for residual in ("smooth", "ghost", "label")],
    ("top_k", "ce"),
    ("top_k", "full_kd"),
]


@pytest.mark.parametrize("impl", ["eager", "chunked"])
@pytest.mark.parametrize(("sampling", "case"), CASES)
def test_forward_kl_has_the_gradient_of_the_paper(sampling: str, case: str, impl: str):
    batch = Batch.make()
    targets = sample_targets(batch.teacher_logits, **TARGETS[sampling])
    truth = batch.through_head(closed_form(batch, case, targets))
    assert_close(batch.gradients(loss_of(batch, case, targets, impl)), truth, 1e-6)


def divergence_gradient(batch: Batch, divergence: str, t: Tensor, log_t: Tensor) -> Tensor:
    """Gradients [N, V] to the logits: q_j (∂D/∂q_j - Σ_v q_v ∂D/∂q_v) (A.1), plus that of forward KL."""
    q = batch.p
    forward = t.sum(-1, keepdim=True) * q - t
    if divergence == "forward":
        return forward
    slope = {
        "reverse": q.log() - log_t + 1,
        "forward_reverse": q.log() - log_t + 1,
        "mse": 2 * (q - t),
        "l1": (q - t).sign(),
    }[divergence]
    gradient = q * (slope - (q * slope).sum(-1, keepdim=True))
    return gradient + forward if divergence == "forward_reverse" else gradient


@pytest.mark.parametrize("impl", ["eager", "chunked"])
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("source", ["teacher", "top_k", "systematic"])
def test_divergences_have_the_gradient_of_their_closed_form(divergence: str, source: str, impl: str):
    batch = Batch.make()
    options = {"divergence": divergence, "impl": impl, "reduction": "sum"}
    if source == "teacher":
        loss = full_kd_loss(batch.hidden, batch.weight, batch.teacher_logits, **options)
        t, log_t = batch.t, batch.teacher_logits.double().log_softmax(-1)
    else:
        targets = sample_targets(batch.teacher_logits, **TARGETS[source])
        loss = sparse_kd_loss(batch.hidden, batch.weight, targets, **options)
        t = targets.to_dense(V).double()
        log_t = t.clamp(min=UNLISTED_PROBABILITY).log()
    truth = batch.through_head(divergence_gradient(batch, divergence, t, log_t))
    assert_close(batch.gradients(loss), truth, 1e-5)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_divergences_of_a_student_from_itself_are_least(divergence: str):
    """Their values: zero (forward KL: the entropy) where q = t, and as torch has them elsewhere."""
    batch = Batch.make()
    loss = partial(full_kd_loss, batch.hidden, batch.weight, divergence=divergence, reduction="none")
    entropy = {"forward": torch.special.entr(batch.p).sum(-1), "forward_reverse": torch.special.entr(batch.p).sum(-1)}
    torch.testing.assert_close(
        loss(batch.p.log()), entropy.get(divergence, torch.zeros(N, dtype=torch.float64)), atol=1e-5, rtol=1e-5
    )
    p, t = batch.p, batch.t
    reverse = F.kl_div(t.log(), p, reduction="none").sum(-1)
    forward = F.cross_entropy(p.log(), t, reduction="none")
    expected = {
        "forward": forward,
        "reverse": reverse,
        "forward_reverse": forward + reverse,
        "mse": F.mse_loss(p, t, reduction="none").sum(-1),
        "l1": F.l1_loss(p, t, reduction="none").sum(-1),
    }[divergence]
    torch.testing.assert_close(loss(batch.teacher_logits), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("option", [{"divergence": d} for d in DIVERGENCES[1:]] + [{"residual": "smooth"}])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_low_precision_is_no_worse_than_the_whole_logits(option: dict, dtype: torch.dtype, reduction: str):
    """With labels, ignored tokens, token weights, bias, soft-cap and padding of the vocabulary."""
    batch = Batch.make(dtype)
    targets = sample_targets(batch.teacher_logits[:, : V - 4], method="top_k", k=K)
    labels = batch.labels.where(batch.labels < V - 4, 1)
    labels[::4] = -100
    bias = torch.linspace(-1, 1, V)
    token_weights = torch.linspace(0.5, 2, N)
    upstream = torch.linspace(-1, 1, N, dtype=torch.float64) if reduction == "none" else torch.tensor(0.7).double()

    def outcome(hidden: Tensor, weight: Tensor, impl: str) -> list[Tensor]:
        loss = sparse_kd_loss(
            hidden,
            weight,
            targets,
            labels,
            ce_weight=0.2,
            token_weights=token_weights,
            bias=bias.to(hidden.dtype),
            softcap=5.0,
            vocab_size=V - 4,
            reduction=reduction,
            impl=impl,
            **option,
        )
        return [g.double() for g in torch.autograd.grad(loss, (hidden, weight), upstream.to(loss.dtype))]

    exact = [tensor.detach().double().requires_grad_() for tensor in (batch.hidden, batch.weight)]
    truth = outcome(*exact, "eager")
    mine, naive = (outcome(batch.hidden, batch.weight, impl) for impl in ("chunked", "eager"))
    for actual, theirs, true in zip(mine, naive, truth):
        error, naive_error = ((g - true).norm() / true.norm() for g in (actual, theirs))
        assert error <= naive_error + TOLERANCE[dtype]
    assert truth[1][V - 4 :].eq(0).all()


@pytest.mark.parametrize("method", ["systematic", "random"])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_which_divergences_sampling_leaves_unbiased(divergence: str, method: str, monkeypatch):
    """A.6 needs a gradient that is linear in the targets: so forward KL and mse pass, and the others must fail."""
    monkeypatch.undo()
    generator = torch.Generator().manual_seed(3)
    num_keys = 4000
    logits, teacher_logits = (torch.randn(1, 60, generator=generator) for _ in range(2))
    z = logits.expand(num_keys, -1).clone().requires_grad_()
    identity = torch.eye(60)

    def gradients(loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss, z)[0].double()

    targets = sample_targets(teacher_logits.expand(num_keys, -1), method=method, num_samples=12)
    options = {"divergence": divergence, "reduction": "sum"}
    sampled = gradients(sparse_kd_loss(z, identity, targets, **options))
    truth = gradients(full_kd_loss(z, identity, teacher_logits.expand(num_keys, -1), **options))[0]
    deviation = (sampled.mean(0) - truth) / (sampled.std(0) / num_keys**0.5 + 1e-7)
    assert (deviation.abs().max() < 5) == (divergence in ("forward", "mse"))


def test_top_k_has_the_least_l1_error_of_k_tokens():
    """A.3: 2(1 - a) after normalising, a the mass that is kept."""
    batch = Batch.make()
    kept = sample_targets(batch.teacher_logits, method="top_k", k=K)

    def error(targets: SparseTargets) -> Tensor:
        return (batch.t - targets.to_dense(V).double() / targets.mass[:, None]).abs().sum(-1)

    torch.testing.assert_close(error(kept), 2 * (1 - kept.mass.double()), atol=1e-6, rtol=1e-6)
    others = torch.stack([torch.randperm(V, generator=torch.Generator().manual_seed(row))[:K] for row in range(N)])
    assert (error(SparseTargets(others, batch.t.gather(1, others).float())) >= error(kept)).all()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"residual": "ghost"}, "the student teaches itself"),
        ({"residual": "smooth"}, "evenly"),
        ({"residual": "label"}, "one token"),
        ({"divergence": "reverse"}, "not linear"),
        ({"divergence": "forward_reverse"}, "not linear"),
        ({"divergence": "l1"}, "not linear"),
    ],
)
def test_biased_losses_warn_in_one_line_with_the_reason(options: dict, reason: str):
    batch = Batch.make()
    targets = sample_targets(batch.teacher_logits, method="top_k", k=K)
    with pytest.warns(BiasWarning, match=reason) as caught:
        sparse_kd_loss(batch.hidden, batch.weight, targets, batch.labels, **options)
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)


def test_unbiased_losses_and_full_kd_do_not_warn():
    batch = Batch.make()
    targets = sample_targets(batch.teacher_logits)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for divergence in ("forward", "mse"):
            sparse_kd_loss(batch.hidden, batch.weight, targets, divergence=divergence)
        for divergence in DIVERGENCES:
            full_kd_loss(batch.hidden, batch.weight, batch.teacher_logits, divergence=divergence)
