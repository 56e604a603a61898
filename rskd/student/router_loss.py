"""The auxiliary loss that keeps the router of a mixture of experts balanced (Switch Transformer, Eqs. 4-6).

    decoder's forward ─► router logits of every layer (by a hook) ─► load_balancing_loss_func of the architecture

A student whose configuration says `output_router_logits` asks for it, as in Transformers, by its own coefficient.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from rskd.errors import ConfigError
from rskd.models.causal_lm import decoder

_COEFFICIENTS = ("router_aux_loss_coef", "aux_loss_coef")


class RouterLoss:
    """The auxiliary loss of one student; made by `router_loss`, which also hooks it to the student's decoder."""

    def __init__(self, balance: Callable[..., Tensor], num_experts: int, num_active: int, coefficient: float):
        self.coefficient = coefficient
        self._balance, self._num_experts, self._num_active = balance, num_experts, num_active
        self._passes: list[list[Tensor]] = []  # router logits [tokens, experts] of each layer
        self._zero: Tensor | None = None

    def watch(self, decoder: Any, args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
        """Forward hook of the decoder. Isolated documents may take several passes, with padding that is masked."""
        mask = kwargs.get("attention_mask")
        layers = [logits.reshape(-1, logits.shape[-1]) for logits in output.router_logits or ()]
        self._passes.append(layers if mask is None else [logits[mask.flatten().bool()] for logits in layers])
        self._zero = output.last_hidden_state.new_zeros(())

    def take(self) -> Tensor:
        """The loss of the passes since the last call, a scalar with its gradient: num_experts · Σ_e f_e·P_e.

        f_e is the mean number of tokens that chose expert e, P_e its mean probability, both over all tokens and layers
        of those passes: a balanced router of top k has k.
        """
        passes, self._passes = self._passes, []
        layers = tuple(map(torch.cat, zip(*passes)))
        if not layers:  # no layer has experts
            assert self._zero is not None
            return self._zero
        return self._balance(layers, self._num_experts, self._num_active)


def balances_router(config: PreTrainedConfig) -> bool:
    """Whether a configuration asks for the auxiliary loss."""
    return bool(getattr(config.get_text_config(), "output_router_logits", False))


def router_loss(student: PreTrainedModel) -> RouterLoss | None:
    """The auxiliary loss that the student's configuration asks for; None where it asks for none.

    An architecture for which Transformers knows no such loss has none, as in its own training. Raises ConfigError for
    one whose loss is of another form.
    """
    balance = getattr(sys.modules[type(student).__module__], "load_balancing_loss_func", None)
    if not balances_router(student.config) or balance is None:
        return None
    places = (student, student.config.get_text_config())
    num_experts, num_active = (_first(places, (name,)) for name in ("num_experts", "num_experts_per_tok"))
    coefficient = _first(places, _COEFFICIENTS)
    usual = list(inspect.signature(balance).parameters) == ["gate_logits", "num_experts", "top_k", "attention_mask"]
    if not usual or num_experts is None or num_active is None or coefficient is None:
        raise ConfigError(
            f"student of architecture {student.config.model_type} asks for its router's auxiliary loss, which is of "
            "another form than Mixtral's: set output_router_logits to false in its config.json"
        )
    loss = RouterLoss(balance, num_experts, num_active, coefficient)
    decoder(student).register_forward_hook(loss.watch, with_kwargs=True)
    return loss


def _first(places: tuple[Any, ...], names: tuple[str, ...]) -> Any:
    return next((value for p in places for name in names if (value := getattr(p, name, None)) is not None), None)
