"""Students of one small task: top-k becomes over-confident, the unbiased samplers follow full KD."""

import pytest
import torch

from rskd.synthetic import calibration_study
from rskd.synthetic.calibration_study import Answers, train_all
from rskd.synthetic.methods import Method, sparse_methods
from rskd.synthetic.study import summarise
from rskd.synthetic.tasks import GaussianClasses

SEEDS = 2


@pytest.fixture(scope="module")
def runs() -> list[dict[str, Answers]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration_study, "TEST_EXAMPLES", 20_000)
        return [train(seed, steps=200) for seed in range(SEEDS)]


def train(seed: int, steps: int) -> dict[str, Answers]:
    task = GaussianClasses.make(torch.Generator().manual_seed(seed))
    methods = sparse_methods(k=3, random_rounds=7, systematic_rounds=5, seed=seed)
    wanted = {name: methods[name] for name in ("top_k", "random", "systematic")} | {"full_kd": Method("full_kd")}
    return train_all(task, wanted, steps=steps, seed=seed, advance=lambda steps: None)


def test_top_k_is_over_confident_beyond_noise(runs: list[dict[str, Answers]]):
    found = summarise([run["top_k"] for run in runs], [run["full_kd"] for run in runs])
    assert found.ece_above_full_kd.value > 0.04
    assert found.ece_above_full_kd.value > 3 * found.ece_above_full_kd.error
    assert found.overconfidence.value > 0.08


@pytest.mark.parametrize("name", ["random", "systematic"])
def test_sampled_students_are_calibrated_as_full_kd_is(runs: list[dict[str, Answers]], name: str):
    found = summarise([run[name] for run in runs], [run["full_kd"] for run in runs])
    assert abs(found.ece_above_full_kd.value) < 0.01
    assert found.unique_tokens == pytest.approx(3, abs=0.6)


def test_a_run_repeats():
    first, again = (train(seed=5, steps=50) for _ in range(2))
    for name, tested in first.items():
        assert torch.equal(tested.confidence, again[name].confidence), name
