"""Angles and norm ratios of gradients: against autograd over the whole batch, and as the method promises them."""

import math
import statistics
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from rskd.evaluation.gradient_similarity import Similarity, at_equal_unique_tokens, gradient_similarity
from rskd.teacher.sampling import Sampling

VOCAB, PADDED, SEQ_LEN, GROUPS, WINDOWS = 60, 64, 16, 6, 4


def make_model(seed: int, initializer_range: float) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=PADDED,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=initializer_range,
    )
    return LlamaForCausalLM(config).eval()


TEACHER = make_model(1, 0.5)


@torch.no_grad()
def teacher_logits(input_ids: Tensor) -> Tensor:
    return TEACHER(input_ids).logits


def make_batches(groups: int = GROUPS) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return list(torch.randint(VOCAB, (groups, WINDOWS, SEQ_LEN + 1), generator=generator))


def measure(samplings: dict[str, Sampling], batches: list[Tensor] | None = None, **options) -> list[Similarity]:
    student = make_model(2, 0.2)
    return gradient_similarity(
        student, teacher_logits, batches or make_batches(), samplings, vocab_size=VOCAB, **options
    )


def test_targets_that_keep_everything_have_the_gradient_of_full_kd():
    [row] = measure({"all": Sampling("top_k", k=VOCAB)})
    assert row.angle < 0.01
    assert row.norm_ratio == pytest.approx(1, abs=1e-5)
    assert row.unique_tokens == VOCAB


@pytest.mark.parametrize("micro_batch", [1, 3, 4])
def test_angle_and_ratio_are_those_of_the_whole_batch(micro_batch: int):
    student = make_model(2, 0.2)
    windows = torch.cat(make_batches())
    input_ids = windows[:, :-1]
    teacher = teacher_logits(input_ids)[..., :VOCAB].softmax(-1)
    kept = teacher.topk(3)
    targets = torch.zeros_like(teacher).scatter(-1, kept.indices, kept.values)

    def gradient(targets: Tensor) -> Tensor:
        loss = -(targets * student(input_ids).logits[..., :VOCAB].log_softmax(-1)).sum()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(student.parameters()))]).double()

    mine, full = gradient(targets), gradient(teacher)
    [row] = measure({"top_k 3": Sampling("top_k", k=3)}, micro_batch=micro_batch)
    assert row.angle == pytest.approx(math.degrees(math.acos(mine @ full / mine.norm() / full.norm())), rel=1e-3)
    assert row.norm_ratio == pytest.approx(float(mine.norm() / full.norm()), rel=1e-4)
    assert list(row.angle_by_tokens) == [64, 128, 256, 384]
    assert row.angle_by_tokens[384] == row.angle


def test_sampled_gradients_come_near_with_rounds_and_with_the_batch_and_top_k_do_not():
    rows = measure(
        {"top_k": Sampling("top_k", k=3), "few": Sampling("random", 5), "many": Sampling("systematic", 200)},
        make_batches(groups=16),
    )
    angles = {row.name: row.angle_by_tokens for row in rows}
    assert angles["many"][1024] < 0.3 * angles["few"][1024]
    assert angles["few"][1024] < 0.6 * angles["few"][64]  # the gradients of random text cancel too, in part
    assert angles["top_k"][1024] > 0.8 * angles["top_k"][64]
    assert rows[0].norm_ratio != pytest.approx(1, abs=0.02)
    assert rows[2].norm_ratio == pytest.approx(1, abs=0.02)


def test_the_jackknife_says_how_far_seeds_scatter():
    """Conservative by up to √2 where the angle is all noise; a standard error of few groups is itself uncertain."""
    rows = measure({f"{seed}": Sampling("random", 12, seed=seed) for seed in range(12)}, make_batches(groups=16))
    scatter = statistics.stdev(row.angle for row in rows)
    claimed = math.sqrt(statistics.mean(row.standard_error["angle"] ** 2 for row in rows))
    assert 0.7 * scatter < claimed < 3 * scatter


def make_row(method: str, unique_tokens: float, angle: float, without: tuple[float, ...]) -> Similarity:
    return Similarity(
        method, Sampling(method, 1), unique_tokens, angle, 1.0, {"angle": 0.1, "norm_ratio": 0.0}, {}, without
    )


def test_systematic_is_compared_where_random_has_as_many_unique_tokens():
    random = [make_row("random", 4.0, 8.0, (8.0, 8.0)), make_row("random", 16.0, 2.0, (2.0, 2.0))]  # angle 32 / unique
    ours = make_row("systematic", 8.0, 3.0, (2.0, 4.0))
    outside = [make_row("systematic", unique, 3.0, (3.0, 3.0)) for unique in (3.0, 17.0)]
    [row] = at_equal_unique_tokens([*random, ours, *outside])
    assert row["random_angle"] == pytest.approx(4.0)
    assert row["ratio"] == pytest.approx(0.75)
    assert row["standard_error"] == pytest.approx(0.25)  # of 0.5 and 1.0
    assert at_equal_unique_tokens([random[0], ours]) == []
    assert row == at_equal_unique_tokens([replace(ours, name="other"), *random])[0]


def test_groups_of_different_size_are_refused():
    batches = make_batches()
    for wrong in ([batches[0]], [batches[0], batches[1][:1]]):
        with pytest.raises(ValueError, match="two or more groups"):
            measure({}, wrong)
