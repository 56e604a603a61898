"""Whether a teacher's loss is that of a language model of the text that it reads.

A wrong beginning of text, a broken conversion or a wrong chat template leaves a model that runs and predicts nothing:
its loss says so at once.
"""

from __future__ import annotations

import math

import numpy as np

_NEAR_UNIFORM = 0.8  # of ln V, the loss of a guess
_FAR_ABOVE_NATS = 1.0  # of a unigram model: e times its perplexity


def doubt_teacher(label_logprob: np.ndarray, labels: np.ndarray, *, vocab_size: int) -> str | None:
    """Why a teacher with these log-probabilities (nats) of `labels` is hardly a model of them; None if it may be one.

    It is not if its mean loss is within 20% of ln V, or more than 1 nat/token above the entropy of the labels' own
    frequencies, which is what a unigram model would have.
    """
    if not labels.size:  # a part without a token that has a loss
        return None
    loss = -float(label_logprob.mean(dtype=np.float64))
    uniform, unigram = math.log(vocab_size), _entropy(labels)
    if loss > _NEAR_UNIFORM * uniform:
        beside = f"a guess among {vocab_size} ids has {uniform:.2f}"
    elif loss > unigram + _FAR_ABOVE_NATS:
        beside = f"the frequencies of the tokens alone give {unigram:.2f}"
    else:
        return None
    return (
        f"the teacher's loss on the first part is {loss:.2f} nats/token, {beside}: check corpus.bos (BOS), the "
        "conversion of its weights and the template of the texts before you train on this cache"
    )


def _entropy(ids: np.ndarray) -> float:
    share = np.unique(ids, return_counts=True)[1] / ids.size
    return -float((share * np.log(share)).sum())
