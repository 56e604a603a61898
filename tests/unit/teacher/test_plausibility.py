import numpy as np
import pytest

from rskd.teacher.plausibility import doubt_teacher

FEW = np.tile(np.arange(4, dtype=np.int32), 256)  # frequencies alone: ln 4 = 1.39 nats
MANY = np.arange(1024, dtype=np.int32)  # ln 1024 = 6.93


@pytest.mark.parametrize(
    ("labels", "loss", "vocab_size", "reason"),
    [
        (MANY, 3.2, 50_000, None),
        (MANY, 7.5, 50_000, None),
        (FEW, 2.3, 50_000, None),
        (FEW, 2.5, 50_000, "the frequencies of the tokens alone give 1.39"),
        (MANY, 8.0, 50_000, "the frequencies of the tokens alone give 6.93"),
        (MANY, 8.7, 50_000, "a guess among 50000 ids has 10.82"),
        (MANY, 25.0, 50_000, "a guess among 50000 ids has 10.82"),
        (MANY, 4.9, 400, "a guess among 400 ids has 5.99"),
        (MANY, np.inf, 400, "a guess among 400 ids has 5.99"),
    ],
)
def test_a_teacher_that_predicts_little_is_doubted(labels, loss: float, vocab_size: int, reason: str | None):
    doubt = doubt_teacher(np.full(labels.shape, -loss, np.float32), labels, vocab_size=vocab_size)
    if reason is None:
        assert doubt is None
        return
    assert doubt is not None
    assert f"loss on the first part is {loss:.2f} nats/token, {reason}: check corpus.bos" in doubt
    assert "\n" not in doubt
