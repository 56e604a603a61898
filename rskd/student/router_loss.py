"""The auxiliary loss that keeps the router of a mixture of experts balanced (Switch Transformer, Eqs. 4-6).

    decoder's forward ─► router logits of every layer (by a hook) ─► load_balancing_loss_func of the architecture

A student whose configuration says `output_router_logits` asks for it, as in Transformers, by its own coefficient.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from rskd.errors import ConfigError

_COEFFICIENTS = ("router_aux_loss_coef", "aux_loss_coef")


class RouterLoss:
    """The auxiliary loss of one student; made by `router_loss`, which also hooks it to the student's decoder."""

    def __init__(self, balance: Callable[..., Tensor], num_experts: int, num_active: int, coefficient: float):
        self.coefficient = coefficient
        self._balance, self._num_experts, self._num_active = balance, num_experts, num_active
        self._output: Any = None

    def watch(self, decoder: Any, args: Any, output: Any) -> None:
        """Forward hook of the decoder."""
        self._output = output

    def take(self) -> Tensor:
        """The loss of the last forward, a scalar with its gradient: num_experts · Σ_e f_e·P_e.

        f_e is the mean number of tokens that chose expert e, P_e its mean probability, both over all tokens and layers
        of that forward: a balanced router of top k has k.
        """
        output, self._output = self._output, None
        if not output.router_logits:  # no layer has experts
            return output.last_hidden_state.new_zeros(())
        return self._balance(output.router_logits, self._num_experts, self._num_active)


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
    student.get_decoder().register_forward_hook(loss.watch)
    return loss


def _first(places: tuple[Any, ...], names: tuple[str, ...]) -> Any:
    return next((value for p in places for name in names if (value := getattr(p, name, None)) is not None), None)
