import numpy as np
import pytest

from rskd.reproduction.claims import checked_claims

LOSS = {
    "ce": 3.0,
    "top_k-3": 3.2,
    "top_k-12": 2.9,
    "random-12": 2.8,
    "systematic-12": 2.8,
    "misaligned-12": 2.82,
    "full_kd": 2.8,
}
ECE = {
    "ce": 0.01,
    "top_k-3": 0.1,
    "top_k-12": 0.05,
    "random-12": 0.01,
    "systematic-12": 0.01,
    "misaligned-12": 0.01,
    "full_kd": 0.01,
}
ACCEPTANCE = {
    "ce": 0.60,
    "top_k-3": 0.58,
    "top_k-12": 0.61,
    "random-12": 0.62,
    "systematic-12": 0.62,
    "misaligned-12": 0.62,
    "full_kd": 0.63,
}


def _records(seeds: int = 3, **loss: float):
    """Window losses with a spread that seeds share in part, so that a paired difference is narrow."""
    shared = np.random.default_rng(0).normal(size=30)
    records = {}
    for seed in range(seeds):
        for index, (method, mean) in enumerate((LOSS | loss).items()):
            noise = 1e-3 * np.random.default_rng([seed, index]).normal(size=30)
            windows = {"lm_loss": mean + shared + noise, "acceptance": ACCEPTANCE[method] + noise}
            records[method, seed] = {
                "metrics": {"ece": ECE[method] + 1e-4 * seed, "lm_loss": mean},
                "windows": {name: values.tolist() for name, values in windows.items()},
            }
    return records


def test_claims_that_hold():
    claims = checked_claims(_records())
    assert len(claims) == 8
    assert all(claim.holds for claim in claims)


@pytest.mark.parametrize(
    ("loss", "broken"),
    [
        ({"random-12": 2.83}, "LM loss of random-12 equals"),  # the margin is 0.02
        ({"misaligned-12": 2.8}, "LM loss is higher where teacher and student read different contexts"),
        ({"systematic-12": 2.81}, "systematic is no worse than random"),
    ],
)
def test_a_claim_that_does_not_hold_says_so(loss: dict, broken: str):
    assert next(claim.text for claim in checked_claims(_records(**loss)) if not claim.holds).startswith(broken)


def test_one_seed_tests_nothing_and_a_diverged_student_is_no_seed():
    assert not [claim for claim in checked_claims(_records(seeds=1)) if "equals" in claim.text]
    records = _records()
    for seed in range(3):
        records["random-12", seed] = {"diverged": "loss is not finite"}
    assert not [claim for claim in checked_claims(records) if "random-12" in claim.text]


def test_a_pair_of_one_seed_hides_no_other():
    records = _records()
    for method in ("random", "systematic"):
        records[f"{method}-2.4", 0] = records[f"{method}-12", 0]
    assert [c.text for c in checked_claims(records) if "systematic is no worse" in c.text] == [
        "systematic is no worse than random at 12 unique tokens"
    ]
