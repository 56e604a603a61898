"""Which targets and losses keep the gradient of full KD on average (paper, A.6), and why the others do not.

A gradient is preserved where it is linear in the targets and E[targets] is the teacher's distribution.
"""

from __future__ import annotations

_SAMPLING = {
    "top_k": "top_k drops the tail and so scales the likeliest tokens up (paper, 2.2)",
    "top_p": "top_p drops the tail and so scales the likeliest tokens up (paper, 2.2)",
}
_RESIDUAL = {
    "smooth": "residual=smooth spreads the tail's mass evenly, which the teacher does not (paper, 3.1)",
    "ghost": "residual=ghost fits the tail's mass alone: within the tail the student teaches itself (paper, A.5)",
    "label": "residual=label gives the tail's mass to one token, the label (paper, 3.3)",
}
_DIVERGENCE = {
    "reverse": "the gradient of divergence=reverse is not linear in sparse targets (paper, A.6)",
    "forward_reverse": "the reverse half of divergence=forward_reverse is not linear in sparse targets (paper, A.6)",
    "l1": "the gradient of divergence=l1 is not linear in sparse targets (paper, A.6)",
}


def sampling_bias(method: str, temperature: float = 1.0) -> str | None:
    """Why E[targets] is not the teacher's distribution; None where it is."""
    if method == "random" and temperature != 1:
        noise = ", and uniform draws are too noisy to learn from" if temperature == 0 else ""
        return f"random at temperature {temperature:g} has a bias of order 1/num_samples{noise} (paper, 3.4, 6.1)"
    return _SAMPLING.get(method)


def loss_bias(residual: str = "none", divergence: str = "forward") -> str | None:
    """Why a loss of sparse targets, whatever they are, has not the mean gradient of full KD; None where it may have."""
    return _RESIDUAL.get(residual) or _DIVERGENCE.get(divergence)
