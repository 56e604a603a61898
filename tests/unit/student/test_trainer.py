"""A step depends on the global batch alone: not on micro-batches, workers, or where training was stopped."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from transformers import LlamaConfig, LlamaForCausalLM

from rskd.cache.loader import CacheBatch
from rskd.config import ObjectiveConfig, TrainConfig
from rskd.sparse_targets import SparseTargets
from rskd.student.sharding import replicate
from rskd.student.trainer import NonFiniteError, StudentLoss, learning_rate, make_optimizer, train

VOCAB, SEQ_LEN, UNIQUE, GLOBAL_BATCH = 50, 8, 3, 5
CPU = torch.device("cpu")


@dataclass
class Batches:
    """A loader in memory: step s of a rank is a contiguous slice of a seeded global batch."""

    start_step: int = 0
    rank: int = 0
    world_size: int = 1

    def __iter__(self) -> Iterator[CacheBatch]:
        step = self.start_step
        while True:
            yield self._batch(step)
            step += 1

    def _batch(self, step: int) -> CacheBatch:
        generator = torch.Generator().manual_seed(step)
        ids = torch.randint(VOCAB, (GLOBAL_BATCH, SEQ_LEN + 1), generator=generator)
        unique = torch.randint(VOCAB, (GLOBAL_BATCH, SEQ_LEN, UNIQUE), generator=generator)
        weights = torch.rand(GLOBAL_BATCH, SEQ_LEN, UNIQUE, generator=generator)
        logprob = -3 * torch.rand(GLOBAL_BATCH, SEQ_LEN, generator=generator)
        cut = [GLOBAL_BATCH * r // self.world_size for r in (self.rank, self.rank + 1)]
        rows = slice(*cut)
        return CacheBatch(
            step=step,
            epoch=0,
            row_ids=100 * step + torch.arange(GLOBAL_BATCH)[rows],
            input_ids=ids[rows, :-1],
            labels=ids[rows, 1:],
            targets=SparseTargets(unique[rows], (weights / weights.sum(-1, keepdim=True))[rows]),
            statistics={"label_logprob": logprob[rows]},
        )


def _student(*, tied: bool = True, initializer_range: float = 0.2) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB + 6,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            tie_word_embeddings=tied,
            initializer_range=initializer_range,
        )
    )


def _config(**changes) -> TrainConfig:
    defaults = {"steps": 4, "global_batch": GLOBAL_BATCH, "micro_batch": GLOBAL_BATCH, "lr": 1e-2, "min_lr": 1e-3}
    return TrainConfig(**(defaults | {"precision": "float32"} | changes))


def _train(batches: Batches, config: TrainConfig, objective: ObjectiveConfig | None = None, *, student=None, **options):
    """Losses by step and the student, after the steps from `batches.start_step` on."""
    student = student or _student()
    loss = StudentLoss(student, objective or ObjectiveConfig(), vocab_size=VOCAB, **options)
    module = replicate(loss, config, CPU)
    losses = {}
    train(
        module,
        make_optimizer(student, config),
        batches,  # pyright: ignore[reportArgumentType]
        config,
        start_step=batches.start_step,
        device=CPU,
        log=lambda step, metrics: losses.update({step: metrics["loss"]}),
        save=lambda step: None,
    )
    return losses, student


def test_learning_rate_warms_up_and_falls_to_the_minimum():
    config = _config(steps=100, lr=1.0, min_lr=0.1, warmup_fraction=0.04)
    rates = [learning_rate(step, config) for step in range(100)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[51] == pytest.approx(0.55)  # half of the cosine
    assert rates[-1] == pytest.approx(0.1)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert learning_rate(0, _config(steps=1, lr=1.0, min_lr=0.1, warmup_fraction=0)) == pytest.approx(0.1)


def test_decay_touches_matrices_only():
    decays = {
        name: group["weight_decay"]
        for group in make_optimizer(_student(), _config(weight_decay=0.3)).state_dict()["param_groups"]
        for name in group["param_names"]
    }
    assert decays["model.embed_tokens.weight"] == 0.3
    assert decays["model.layers.0.self_attn.q_proj.weight"] == 0.3
    assert decays["model.norm.weight"] == 0.0


@pytest.mark.filterwarnings("error::rskd.errors.BiasWarning")  # the job has said it
@pytest.mark.parametrize(
    "objective",
    [
        *[{"kind": kind} for kind in ("sparse_kd", "ce", "full_kd")],
        *[{"residual": residual} for residual in ("smooth", "ghost", "label")],
        *[{"kind": "full_kd", "divergence": name} for name in ("reverse", "forward_reverse", "mse", "l1")],
        *[{"divergence": name} for name in ("reverse", "forward_reverse", "mse", "l1")],
    ],
    ids=lambda objective: "-".join(objective.values()),
)
def test_every_objective_learns(objective: dict):
    teacher = torch.nn.Embedding(VOCAB, VOCAB)
    losses, _ = _train(
        RepeatedBatch(),
        _config(steps=30),
        ObjectiveConfig(**objective),
        teacher_logits=lambda ids: 2 * teacher(ids).detach(),
    )
    assert losses[30] < losses[1] - min(0.3, 0.3 * losses[1])


@dataclass
class RepeatedBatch(Batches):
    """The same global batch at every step."""

    def _batch(self, step: int) -> CacheBatch:
        return super()._batch(0)


def test_loss_is_the_mean_over_the_tokens_of_the_global_batch():
    student = _student().eval()
    batch = Batches()._batch(0)
    logits = student(batch.input_ids).logits[..., :VOCAB]
    assert batch.targets is not None
    expected = -(batch.targets.to_dense(VOCAB) * logits.log_softmax(-1)).sum(-1).mean().item()
    losses, _ = _train(Batches(), _config(steps=1))
    assert losses[1] == pytest.approx(expected, rel=1e-5)


def test_hard_tokens_weigh_as_the_ratio_says():
    objective = ObjectiveConfig(hard_easy_ratio=3.0)
    weighted, _ = _train(Batches(), _config(), objective, hard_threshold=-1.5)
    plain, _ = _train(Batches(), _config())
    assert weighted[1] != plain[1]
    assert weighted[1] == pytest.approx(plain[1], rel=0.3)  # the mean weight is 1


def test_isolated_documents_do_not_see_each_other():
    end = 0
    loss = StudentLoss(_student(), ObjectiveConfig(kind="ce"), vocab_size=VOCAB, end_of_text_id=end).eval()
    joined = StudentLoss(loss.student, ObjectiveConfig(kind="ce"), vocab_size=VOCAB).eval()
    ids = torch.tensor([[1, 2, end, 3, 4, 5], [9, 8, end, 3, 4, 5]])
    labels = torch.tensor([[-100, -100, -100, 4, 5, 6]])  # of the second document alone
    one, other = (loss(ids[row : row + 1], labels, None, None) for row in (0, 1))
    assert torch.equal(one, other)
    assert not torch.equal(one, joined(ids[:1], labels, None, None))


@pytest.mark.parametrize("tied", [True, False])
def test_micro_batches_add_up_to_the_whole_batch(tied: bool):
    whole, one = _train(Batches(), _config(), student=_student(tied=tied))
    parts, other = _train(Batches(), _config(micro_batch=4), student=_student(tied=tied))  # 4 + 1
    assert list(parts.values()) == pytest.approx(list(whole.values()), abs=1e-5)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(one.parameters(), other.parameters()))


def test_two_workers_train_like_one(tmp_path: Path):
    alone, _ = _train(Batches(), _config(micro_batch=2))
    workers = [
        subprocess.Popen([sys.executable, __file__, str(rank), "2", str(tmp_path)]) for rank in range(2)
    ]  # 5 windows over 2 workers: 2 and 3
    assert [worker.wait(timeout=120) for worker in workers] == [0] * 2
    for rank in range(2):
        losses = json.loads((tmp_path / f"{rank}.json").read_text())
        assert losses == pytest.approx(list(alone.values()), abs=1e-5)


def test_bfloat16_autocast_keeps_fp32_weights():
    losses, student = _train(Batches(), _config(precision="bfloat16"))
    exact, _ = _train(Batches(), _config())
    assert losses[1] == pytest.approx(exact[1], rel=2e-2)
    assert losses[1] != exact[1]
    assert {p.dtype for p in student.parameters()} == {torch.float32}


def test_a_non_finite_loss_stops_before_the_weights_change():
    class Poisoned(Batches):
        def _batch(self, step: int) -> CacheBatch:
            batch = super()._batch(step)
            if step == 1:
                batch.targets.weights[3, 2, 1] = torch.nan
            return batch

    seen = {}
    student = _student()
    config = _config(micro_batch=2)
    loss = StudentLoss(student, ObjectiveConfig(), vocab_size=VOCAB)

    def log(step: int, metrics: dict[str, float]) -> None:
        seen[step] = [p.detach().clone() for p in student.parameters()]

    with pytest.raises(NonFiniteError, match=r"loss is not finite at step 2, rows \[102, 103\]"):
        train(
            replicate(loss, config, CPU),
            make_optimizer(student, config),
            Poisoned(),  # pyright: ignore[reportArgumentType]
            config,
            start_step=0,
            device=CPU,
            log=log,
            save=lambda step: None,
        )
    assert list(seen) == [1]
    assert all(torch.equal(a, b) for a, b in zip(seen[1], student.parameters()))


def test_saves_after_every_interval_and_at_the_end():
    saved = []
    student, config = _student(), _config(steps=5, checkpoint_every=2)
    train(
        replicate(StudentLoss(student, ObjectiveConfig(), vocab_size=VOCAB), config, CPU),
        make_optimizer(student, config),
        Batches(),  # pyright: ignore[reportArgumentType]
        config,
        start_step=0,
        device=CPU,
        log=lambda step, metrics: None,
        save=saved.append,
    )
    assert saved == [2, 4, 5]


def _worker(rank: int, world_size: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    losses, _ = _train(Batches(rank=rank, world_size=world_size), _config(micro_batch=1))
    (folder / f"{rank}.json").write_text(json.dumps(list(losses.values())))
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    _worker(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
