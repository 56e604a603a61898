"""The objectives' conventions: what is summed, ignored, divided by and refused. Gradients are in tests/numerics."""

import pytest
import torch
import torch.nn.functional as F

from rskd.sparse_targets import SparseTargets
from rskd.student import fused_loss
from rskd.student.objective import cross_entropy_loss, full_kd_loss, hard_easy_weights, sparse_kd_loss

chunk_rows = fused_loss._chunk_rows  # before tests replace it
N, D, V, K = 13, 8, 37, 5
IMPLS = ("eager", "chunked")


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(fused_loss, "_chunk_rows", lambda *_: 4)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, D, generator=generator).requires_grad_()
    weight = torch.randn(V, D, generator=generator).requires_grad_()
    targets = SparseTargets(torch.randint(V, (N, K), generator=generator), torch.rand(N, K, generator=generator))
    labels = torch.randint(V, (N,), generator=generator)
    return hidden, weight, targets, labels


@pytest.mark.parametrize("impl", IMPLS)
def test_is_cross_entropy_with_the_dense_targets(batch, impl):
    hidden, weight, targets, _ = batch
    expected = F.cross_entropy(hidden @ weight.T, targets.to_dense(V))
    torch.testing.assert_close(sparse_kd_loss(hidden, weight, targets, impl=impl), expected)


@pytest.mark.parametrize("impl", IMPLS)
def test_ce_weight_weighs_cross_entropy(batch, impl):
    hidden, weight, targets, labels = batch
    ce = F.cross_entropy(hidden @ weight.T, labels)
    kd = sparse_kd_loss(hidden, weight, targets)
    loss = sparse_kd_loss(hidden, weight, targets, labels, ce_weight=0.3, impl=impl)
    torch.testing.assert_close(loss, 0.3 * ce + 0.7 * kd)
    torch.testing.assert_close(sparse_kd_loss(hidden, weight, targets, labels, ce_weight=1.0, impl=impl), ce)


@pytest.mark.parametrize("impl", IMPLS)
def test_reductions_and_ignored_tokens(batch, impl):
    hidden, weight, targets, labels = batch
    labels[[0, 5]] = -100
    token_weights = torch.linspace(0.1, 3, N)
    options = {"ce_weight": 0.1, "token_weights": token_weights, "impl": impl}
    each = sparse_kd_loss(hidden, weight, targets, labels, reduction="none", **options)
    plain = sparse_kd_loss(hidden, weight, targets, labels, ce_weight=0.1, reduction="none", impl=impl)
    assert each.shape == (N,)
    assert each[[0, 5]].eq(0).all()
    torch.testing.assert_close(each, token_weights * plain)
    total = sparse_kd_loss(hidden, weight, targets, labels, reduction="sum", **options)
    torch.testing.assert_close(total, each.sum())
    torch.testing.assert_close(sparse_kd_loss(hidden, weight, targets, labels, **options), each.sum() / (N - 2))


@pytest.mark.parametrize("impl", IMPLS)
def test_labels_mask_without_ce_weight_too(batch, impl):
    hidden, weight, targets, labels = batch
    labels[3] = 7
    each = sparse_kd_loss(hidden, weight, targets, labels, ignore_index=7, reduction="none", impl=impl)
    assert torch.equal(each == 0, labels == 7)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_no_valid_token_gives_zero_and_zero_gradients(batch, impl, reduction):
    hidden, weight, targets, labels = batch
    loss = sparse_kd_loss(
        hidden, weight, targets, torch.full_like(labels, -100), ce_weight=0.1, reduction=reduction, impl=impl
    )
    loss.sum().backward()
    assert loss.eq(0).all()
    assert hidden.grad is not None
    assert hidden.grad.eq(0).all()
    assert weight.grad is not None
    assert weight.grad.eq(0).all()


@pytest.mark.parametrize("impl", IMPLS)
def test_no_tokens_at_all_give_zero(batch, impl):
    hidden, weight, targets, labels = batch
    none = SparseTargets(targets.ids[:0], targets.weights[:0])
    loss = sparse_kd_loss(hidden[:0], weight, none, labels[:0], impl=impl)
    loss.backward()
    assert loss.item() == 0


@pytest.mark.parametrize("impl", IMPLS)
def test_padded_vocabulary_bias_and_softcap(batch, impl):
    hidden, weight, targets, _ = batch
    targets = SparseTargets(targets.ids % 30, targets.weights)
    bias = torch.linspace(-1, 1, V, requires_grad=True)
    logits = 3 * torch.tanh((hidden @ weight.T + bias)[:, :30] / 3)
    expected = F.cross_entropy(logits, targets.to_dense(30))
    loss = sparse_kd_loss(hidden, weight, targets, bias=bias, softcap=3.0, vocab_size=30, impl=impl)
    torch.testing.assert_close(loss, expected)
    for mine, theirs in zip(
        torch.autograd.grad(loss, (hidden, weight, bias)), torch.autograd.grad(expected, (hidden, weight, bias))
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("impl", IMPLS)
def test_cross_entropy_is_pytorchs(batch, impl):
    hidden, weight, _, labels = batch
    labels[2] = -100
    for reduction in ("mean", "sum", "none"):
        expected = F.cross_entropy(hidden @ weight.T, labels, reduction=reduction)
        loss = cross_entropy_loss(hidden, weight, labels, reduction=reduction, impl=impl)
        torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("ce_weight", [0.0, 0.2])
def test_full_kd_is_cross_entropy_with_the_teachers_softmax(batch, impl, ce_weight):
    hidden, weight, _, labels = batch
    labels[2] = -100
    teacher_logits = torch.randn(N, V + 3, generator=torch.Generator().manual_seed(1))
    teacher_logits[:, 30:] = -torch.inf
    logits = (hidden @ weight.T)[:, :30]
    labels = labels.remainder(30).where(labels >= 0, labels)
    kept = labels >= 0
    kd = F.cross_entropy(logits[kept], teacher_logits[kept, :30].softmax(-1))
    expected = ce_weight * F.cross_entropy(logits, labels) + (1 - ce_weight) * kd
    loss = full_kd_loss(hidden, weight, teacher_logits, labels, ce_weight=ce_weight, vocab_size=30, impl=impl)
    torch.testing.assert_close(loss, expected)
    for mine, theirs in zip(
        torch.autograd.grad(loss, (hidden, weight)), torch.autograd.grad(expected, (hidden, weight))
    ):
        torch.testing.assert_close(mine, theirs)


def test_chunks_are_equal_and_smaller_than_the_heads_gradient():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert chunk_rows(1024, 576, cpu) == 256
    assert chunk_rows(600, 576, cpu) == 200
    assert chunk_rows(8192, 4096, cuda) == 2048
    assert chunk_rows(100_000, 16_384, cpu) <= 512
    assert chunk_rows(0, 576, cpu) == 1


def test_no_gradient_is_made_for_what_needs_none(batch):
    hidden, weight, targets, _ = batch
    loss = sparse_kd_loss(hidden.detach(), weight, targets, impl="chunked")
    loss.backward()
    assert weight.grad is not None
    with torch.no_grad():
        assert not sparse_kd_loss(hidden, weight, targets, impl="chunked").requires_grad
    frozen = sparse_kd_loss(hidden, weight.detach(), targets, impl="chunked")
    (gradient,) = torch.autograd.grad(frozen, hidden)
    assert gradient.shape == (N, D)


def test_backward_may_be_called_again(batch):
    hidden, weight, targets, _ = batch
    loss = sparse_kd_loss(hidden, weight, targets, impl="chunked")
    (first,) = torch.autograd.grad(3 * loss, hidden, retain_graph=True)
    (second,) = torch.autograd.grad(loss, hidden)
    torch.testing.assert_close(first, 3 * second)


def test_backward_twice_without_retaining_is_refused(batch):
    hidden, weight, targets, _ = batch
    loss = sparse_kd_loss(hidden, weight, targets, impl="chunked")
    loss.backward()
    with pytest.raises(RuntimeError, match="retain_graph"):
        loss.backward()


def test_autograd_hands_on_the_gradient_that_the_forward_pass_made(batch, monkeypatch):
    hidden, weight, targets, _ = batch
    made = []
    monkeypatch.setattr(
        fused_loss, "_scale", lambda gradients, factor: made.extend(g.data_ptr() for g in gradients[:2])
    )
    sparse_kd_loss(hidden, weight, targets, impl="chunked").backward()
    assert made == [hidden.grad.data_ptr(), weight.grad.data_ptr()]


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_gradients_accumulate_over_micro_batches(batch, reduction):
    hidden, weight, targets, _ = batch
    tied = torch.nn.functional.embedding(targets.ids[:, 0], weight)  # the head's weight has another use
    factor = torch.tensor(0.3)

    def step(rows, impl):
        part = SparseTargets(targets.ids[rows], targets.weights[rows])
        loss = sparse_kd_loss((hidden + tied)[rows], weight, part, reduction=reduction, impl=impl)
        (factor * loss.sum()).backward(retain_graph=True)

    gradients = {}
    for impl in IMPLS:
        hidden.grad = weight.grad = None
        step(slice(0, 5), impl)
        step(slice(5, N), impl)
        gradients[impl] = (hidden.grad, weight.grad)
    torch.testing.assert_close(gradients["chunked"], gradients["eager"])


def test_works_inside_a_compiled_student(batch):
    hidden, weight, targets, labels = batch

    def student(hidden, weight):
        return 2 * sparse_kd_loss(torch.tanh(hidden), weight, targets, labels, ce_weight=0.1, impl="chunked")

    expected = torch.autograd.grad(student(hidden, weight), (hidden, weight))
    compiled = torch.compile(student, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(hidden, weight), (hidden, weight)), expected)


def test_hard_tokens_weigh_ratio_times_easy_ones_and_the_mean_is_one():
    log_probs = torch.linspace(-5, 0, 1000).view(10, 100)
    threshold = torch.quantile(log_probs, 0.3).item()
    weights = hard_easy_weights(log_probs, threshold=threshold, ratio=2.0, hard_fraction=0.3)
    assert weights.shape == (10, 100)
    torch.testing.assert_close(weights.mean(), torch.tensor(1.0))
    torch.testing.assert_close(weights.max() / weights.min(), torch.tensor(2.0))
    assert torch.equal(weights == weights.max(), log_probs < threshold)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"ce_weight": 0.1}, "needs labels"),
        ({"ce_weight": 1.1}, "ce_weight must be within"),
        ({"reduction": "average"}, "reduction must be one of"),
        ({"impl": "fast"}, "impl must be one of"),
        ({"labels": torch.zeros(N - 1, dtype=torch.int64)}, "labels must have shape"),
        ({"token_weights": torch.zeros(N, 1)}, "token_weights must have shape"),
        ({"vocab_size": V + 1}, "vocab_size must be within"),
        (
            {"targets": SparseTargets(torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2, 1))},
            "targets must have shape",
        ),
        ({"hidden": torch.zeros(N, D + 1)}, "hidden must have shape"),
    ],
)
def test_bad_calls_are_refused(batch, wrong, words):
    hidden, weight, targets, _ = batch
    with pytest.raises(ValueError, match=words):
        sparse_kd_loss(**{"hidden": hidden, "lm_head_weight": weight, "targets": targets} | wrong)
