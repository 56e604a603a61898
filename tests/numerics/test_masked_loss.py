"""The loss of packed, isolated conversations is that of each conversation alone, however a step is cut.

Over the tokens that have a loss, divided by their number in the global batch: for cross-entropy, sparse KD and full KD,
for models that isolate by position ids and for those that read row by row, for one and two workers.
"""

import itertools
import json
import subprocess
import sys
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from rskd.cache.loader import CacheBatch
from rskd.config import ObjectiveConfig, TrainConfig
from rskd.corpus.chat_packing import MaskedTokens, Piece, fill
from rskd.models.causal_lm import isolates_by_positions
from rskd.sparse_targets import IGNORE_INDEX
from rskd.student.sharding import replicate
from rskd.student.trainer import StudentLoss, hard_easy_weights, make_optimizer, train_step
from rskd.teacher.hidden_to_targets import Order, sample_from_hidden
from rskd.teacher.sampling import Sampling, sample_targets
from rskd.teacher.transformers_teacher import TransformersTeacher

VOCAB, SEPARATOR, SEQ_LEN, ROUNDS = 50, 49, 24, 7
CPU = torch.device("cpu")
SIZES = {"hidden_size": 16, "num_attention_heads": 2, "initializer_range": 0.3, "vocab_size": VOCAB}
MODELS = {
    "llama": {"intermediate_size": 32, "num_hidden_layers": 2},
    "bloom": {"n_layer": 2, "n_head": 2},
}
# Conversations of each window; those whose number is in WITHOUT have no loss.
WINDOWS = {
    "anywhere": [[0, 1], [2], [3, 4], [5, 6, 7]],
    "not on the last rank": [[0, 1], [3, 4], [2], [2]],
    "nowhere": [[2], [2], [2], [2]],
}
LENGTHS, WITHOUT = (9, 12, 20, 5, 14, 3, 6, 10), {2, 6}
OBJECTIVES = {
    "ce": ObjectiveConfig(kind="ce"),
    "sparse_kd": ObjectiveConfig(ce_weight=0.3, hard_easy_ratio=2.0),
    "full_kd": ObjectiveConfig(kind="full_kd", ce_weight=0.3),
}


@cache
def model(architecture: str, seed: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = AutoConfig.for_model(architecture, **SIZES | MODELS[architecture])
    return AutoModelForCausalLM.from_config(config).eval()


def student_of(architecture: str) -> PreTrainedModel:
    """The same one each time."""
    model.cache_clear()
    return model(architecture, 0)


@cache
def conversations() -> list[MaskedTokens]:
    rng = np.random.default_rng(0)
    masks = [(rng.random(length) < 0.5).astype(np.uint8) for length in LENGTHS]
    return [
        MaskedTokens(rng.integers(0, SEPARATOR, len(mask), dtype=np.int32), mask * (index not in WITHOUT))
        for index, mask in enumerate(masks)
    ]


def packed(case: str) -> tuple[Tensor, Tensor]:
    """Windows int64 [4, S+1], and which positions have a loss, bool [4, S]."""
    windows = [[Piece(index, 0, LENGTHS[index]) for index in window] for window in WINDOWS[case]]
    ids, mask = fill(windows, conversations(), SEQ_LEN, SEPARATOR)
    return torch.from_numpy(ids).long(), torch.from_numpy(mask[:, 1:]) > 0


def batch_of(case: str, architecture: str, rows: slice = slice(None)) -> CacheBatch:
    """A masked batch, as the loader makes one from a cache of the teacher: model 1."""
    ids, has_loss = packed(case)
    teacher = TransformersTeacher(model(architecture, 1))
    with torch.no_grad():
        logits = teacher.logits(ids[:, :-1], vocab_size=VOCAB, end_of_text_id=SEPARATOR)
    targets = sample_targets(logits, num_samples=ROUNDS)
    label_logprob = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    targets.weights[~has_loss] = 0
    return CacheBatch(
        step=0,
        epoch=0,
        row_ids=torch.arange(len(ids))[rows],
        input_ids=ids[rows, :-1],
        labels=ids[rows, 1:].masked_fill(~has_loss[rows], IGNORE_INDEX),
        targets=targets[rows],
        statistics={"label_logprob": label_logprob[rows] * has_loss[rows]},
        masked=True,
    )


def step(case: str, objective: str, architecture: str, micro_batch: int, rows: slice = slice(None)):
    """Metrics and gradients of a step on some rows of the global batch of four windows."""
    config = TrainConfig(global_batch=4, micro_batch=micro_batch, precision="float32", grad_clip=1e9, lr=1e-3)
    batch, student = batch_of(case, architecture, rows), student_of(architecture)
    teacher = TransformersTeacher(model(architecture, 1))
    loss = StudentLoss(
        student,
        OBJECTIVES[objective],
        vocab_size=VOCAB,
        end_of_text_id=SEPARATOR,
        hard_threshold=-3.0,
        teacher_logits=partial(teacher.logits, vocab_size=VOCAB, end_of_text_id=SEPARATOR),
    )
    metrics = train_step(
        replicate(loss, config, CPU), make_optimizer(student, config), batch, config, step=0, device=CPU
    )
    return metrics, [parameter.grad for parameter in student.parameters()]


def alone(case: str, objective: str, architecture: str):
    """The same from each conversation by itself, in dense PyTorch: no window, no separator, no mask but the labels'."""
    student, teacher, batch = student_of(architecture), model(architecture, 1), batch_of(case, architecture)
    config = OBJECTIVES[objective]
    losses, tokens = [student.get_input_embeddings().weight.sum() * 0], 0
    for row, window in enumerate(WINDOWS[case]):
        start = 0
        for index in window:
            ids, mask = (torch.from_numpy(values) for values in conversations()[index])
            places = (mask[1:] > 0).nonzero()[:, 0]
            log_q = student(input_ids=ids[None].long()).logits[0, places].log_softmax(-1)
            with torch.no_grad():
                t = teacher(input_ids=ids[None].long()).logits[0, places].softmax(-1)
            ce = F.nll_loss(log_q, ids.long()[places + 1], reduction="none")
            weights = torch.ones(len(places))
            if objective == "sparse_kd":
                assert batch.targets is not None
                sampled = batch.targets.to_dense(VOCAB)[row, start + places]
                assert ((sampled * ROUNDS - t * ROUNDS).abs() < 1 + 1e-4).all()  # systematic draws of t
                t = sampled
                at = batch.statistics["label_logprob"][row, start + places]
                weights = hard_easy_weights(at, threshold=-3.0, ratio=2.0, hard_fraction=config.hard_percentile / 100)
            alpha = 1.0 if objective == "ce" else config.ce_weight
            losses.append((weights * (alpha * ce - (1 - alpha) * (t * log_q).sum(-1))).sum())
            tokens += len(places)
            start += len(ids) + 1
    mean = torch.stack(losses).sum() / max(1, tokens)
    return mean.item(), torch.autograd.grad(mean, list(student.parameters()), allow_unused=True)


@pytest.mark.parametrize("micro_batch", [1, 3, 4])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("architecture", MODELS)
def test_a_step_is_that_of_each_conversation_alone(architecture: str, objective: str, micro_batch: int):
    assert isolates_by_positions(model(architecture, 0)) == (architecture == "llama")
    for case in WINDOWS:
        loss, gradients = alone(case, objective, architecture)
        metrics, found = step(case, objective, architecture, micro_batch)
        assert metrics["loss"] == pytest.approx(loss, abs=1e-5)
        assert (loss == 0) == (case == "nowhere")
        for mine, wanted in zip(found, gradients, strict=True):
            torch.testing.assert_close(mine, torch.zeros_like(mine) if wanted is None else wanted, atol=1e-5, rtol=1e-4)


def test_two_workers_take_the_step_of_one(tmp_path: Path):
    """Also where a rank, or each of them, has no token with a loss: neither waits for the other for ever."""
    command = [sys.executable, __file__, str(tmp_path)]
    workers = [subprocess.Popen([*command, str(rank)]) for rank in range(2)]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    for kind in itertools.product(WINDOWS, OBJECTIVES, MODELS):
        loss, gradients = alone(*kind)
        for rank in range(2):
            name = " ".join((*kind, str(rank)))
            assert json.loads((tmp_path / f"{name}.json").read_text())["loss"] == pytest.approx(loss, abs=1e-5)
            for mine, wanted in zip(torch.load(tmp_path / f"{name}.pt"), gradients, strict=True):
                wanted = torch.zeros_like(mine) if wanted is None else wanted
                torch.testing.assert_close(mine, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("architecture", MODELS)
def test_the_teacher_samples_where_there_is_a_loss_as_everywhere(architecture: str):
    ids, has_loss = packed("anywhere")
    teacher, keys = TransformersTeacher(model(architecture, 1)), torch.arange(has_loss.numel()).view(has_loss.shape)
    order = Order({"": Sampling(num_samples=ROUNDS)}, ("label_logprob", "top1"), VOCAB)
    everywhere = teacher.sample(ids, keys, order, SEPARATOR)
    places = has_loss.flatten().nonzero()[:, 0]
    there = teacher.sample(ids, keys, order, SEPARATOR, places)
    sampling = order.samplings[""]
    wanted, found = (rows.drawn[""].targets(sampling).to_dense(VOCAB) for rows in (everywhere, there))
    assert torch.equal(found, wanted[places])
    assert torch.equal(there.statistics["top1"], everywhere.statistics["top1"][places])
    nothing = teacher.sample(ids, keys, order, SEPARATOR, places[:0])
    assert len(nothing.drawn[""].ids) == len(nothing.statistics["top1"]) == 0


@torch.inference_mode()
def test_masked_targets_are_unbiased():
    """Means over many draws at the positions with a loss, within 4.5 standard errors; top_k fails the same test."""
    ids, has_loss = packed("anywhere")
    teacher = TransformersTeacher(model("llama", 1))
    places = has_loss.flatten().nonzero()[:, 0]
    hidden = teacher.hidden(ids[:, :-1], SEPARATOR, places)
    p = teacher.head.logits(hidden).double().softmax(-1)
    draws = 4000

    def mean(**sampling) -> Tensor:
        repeated = hidden.repeat_interleave(draws, 0)
        targets = sample_from_hidden(repeated, teacher.head.weight, keys=torch.arange(len(repeated)), **sampling)
        return targets.to_dense(VOCAB).double().view(len(places), draws, VOCAB).mean(1)

    error = (p * (1 - p) / ROUNDS / draws).sqrt()  # of independent draws: systematic ones have no more
    for method in ("systematic", "random"):
        assert ((mean(method=method, num_samples=ROUNDS) - p).abs() <= 4.5 * error + 1e-7).all()
    assert ((mean(method="top_k", k=5) - p).abs() > 4.5 * error + 1e-7).any()


if __name__ == "__main__":
    _, folder, rank = sys.argv
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=int(rank), world_size=2)
    mine = slice(0, 2) if rank == "0" else slice(2, 4)
    for kind in itertools.product(WINDOWS, OBJECTIVES, MODELS):
        metrics, gradients = step(*kind, 1, mine)
        name = " ".join((*kind, rank))
        Path(folder, f"{name}.json").write_text(json.dumps(metrics))
        torch.save(gradients, Path(folder, f"{name}.pt"))
    dist.destroy_process_group()
