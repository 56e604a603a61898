"""A shallower copy of the teacher: evenly spread layers, with the embeddings, the final norm and the head.

    teacher's config ─► thinned_config: fewer layers, each of the kind of the layer that it comes from ─┐
    teacher's weights ───────────────────────────────────────────────────► copy_layers ◄──────────┘

What cannot be thinned is refused by name, in two steps. `thinned_config` compares both models without weights (meta
device), module by module, before any work. `copy_layers` compares what they compute: the student, and the
teacher with its other layers skipped. So a student of all layers equals its teacher.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from rskd.errors import ConfigError
from rskd.models.causal_lm import close, relative_error
from rskd.models.checks import runnable
from rskd.models.decoder_layers import DEPTH, NoLayersError, decoder_layers, depth
from rskd.models.load import model_without_weights

_LEADING = ("first_k_dense_replace", "num_dense_layers", "max_window_layers", "moe_layer_start_index")  # layers < value
_INCLUSIVE = ("moe_layer_end_index",)  # layers <= value
_TRAILING = ("num_kv_shared_layers",)  # the last so many
_CYCLES = ("block_types",)  # repeated over all layers
_PERIODS = (("attn_layer_period", "attn_layer_offset"), ("expert_layer_period", "expert_layer_offset"))
_PER_ROOT_OF_DEPTH = ("scale_depth",)  # a factor that the architecture divides by the root of its depth
_LINKED = ("beam", "zaya")  # each layer reads what the one before it left beside the hidden states
_OWN_PLACE = ("idx", "index", "layer_id", "layer_number")  # ends of the names of what a layer knows of its place
_TOKENS = 24  # of the comparison of what both compute


class _CannotThinError(Exception):
    """Why a student of fewer layers would not compute what the teacher does."""


def kept_layers(num_teacher_layers: int, num_layers: int) -> list[int]:
    """Indices of the teacher's layers that a student keeps: evenly spread, the first and the last among them.

    Layer i of n is the teacher's round(i·(L-1)/(n-1)); a student of one layer keeps the first.
    """
    steps = max(num_layers - 1, 1)
    return [(2 * i * (num_teacher_layers - 1) + steps) // (2 * steps) for i in range(num_layers)]


def thinned_config(teacher: PreTrainedConfig, num_layers: int) -> PreTrainedConfig:
    """The teacher's configuration with fewer layers, checked without weights (seconds for a large model).

    Raises ConfigError for more layers than the teacher has, and for an architecture that cannot be thinned.
    """
    total = depth(teacher)
    if num_layers > total:
        raise ConfigError(f"student.num_layers={num_layers} exceeds the teacher's {total} layers: lower it")
    kept = kept_layers(total, num_layers)
    try:
        student = _with_layers(teacher, total, kept)
        whole, shallow = (model_without_weights(config) for config in (teacher, student))
        _check_same_layers(whole, shallow, kept)
    except Exception as error:  # an architecture has its own words for a configuration that it does not take
        raise _refusal(teacher, error) from None
    return student


def copy_layers(teacher: PreTrainedModel, student: PreTrainedModel) -> None:
    """Give a student of `thinned_config` the teacher's embeddings, final norm, head and kept layers; both in fp32.

    Raises ConfigError where it would compute anything else than the teacher with its other layers skipped.
    """
    try:
        path, layers = decoder_layers(teacher)
        kept = kept_layers(len(layers), len(cast(nn.ModuleList, student.get_submodule(path))))
        student.load_state_dict(_thinned_state(teacher, student, path, kept))
        _check_same_function(teacher, student, layers, kept)
    except Exception as error:  # an architecture has its own words for what it does not take
        raise _refusal(student.config, error) from None


def _refusal(config: PreTrainedConfig, error: Exception) -> ConfigError:
    reason = str(error) if isinstance(error, _CannotThinError | NoLayersError) else f"{type(error).__name__}: {error}"
    reason = " ".join(reason.split())[:200]
    return ConfigError(
        f"student.init=teacher_layers is not possible for architecture {config.model_type} ({reason}): choose another "
        "student.num_layers, or student.init random"
    )


def _with_layers(teacher: PreTrainedConfig, total: int, kept: Sequence[int]) -> PreTrainedConfig:
    """A configuration of the kept layers alone, as it is read from its file."""
    if teacher.model_type in _LINKED and len(kept) < total:
        raise _CannotThinError("each of its layers depends on the one before it")
    whole, text = teacher.to_dict(), teacher.get_text_config()
    section = next((name for name in teacher.sub_configs if getattr(teacher, name, None) is text), None)
    values = whole if section is None else whole[section]
    depths = [text.attribute_map.get(name, name) for name in DEPTH if getattr(text, name, None) == total]
    thinned = {name: _thinned(name, value, total, kept) for name, value in values.items()}
    thinned |= dict.fromkeys(depths, len(kept)) | _periods(values, kept) | _sparse_steps(values, kept)
    return type(teacher).from_dict(thinned if section is None else whole | {section: thinned})


def _thinned(name: str, value: Any, total: int, kept: Sequence[int]) -> Any:
    """One value of a configuration for the kept layers: lists and tables by layer, lists of layers, counts of them."""
    if isinstance(value, dict):
        if value and all(str(key).isdecimal() for key in value):
            by_layer = {int(key): inner for key, inner in value.items()}
            return {new: by_layer[old] for new, old in enumerate(kept) if old in by_layer}
        return {key: _thinned(key, inner, total, kept) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        if name in _CYCLES:
            return [value[old % len(value)] for old in kept]
        if _names_layers(name, value, total):
            return [new for new, old in enumerate(kept) if old in value]
        return [value[old] for old in kept] if len(value) == total else value
    if isinstance(value, int) and not isinstance(value, bool):
        if name in _LEADING:
            return sum(old < value for old in kept)
        if name in _INCLUSIVE:
            return sum(old <= value for old in kept) - 1
        if name in _TRAILING:
            return sum(old >= total - value for old in kept)
    return value * math.sqrt(len(kept) / total) if name in _PER_ROOT_OF_DEPTH else value


def _names_layers(name: str, value: Sequence[Any], total: int) -> bool:
    """Whether a list holds indices of layers, rising, and not an entry for each."""
    if not any(word in name for word in ("layer", "idx", "indices")) or not value:
        return False
    return all(type(one) is int and 0 <= one < total for one in value) and list(value) == sorted(set(value))


def _periods(values: dict[str, Any], kept: Sequence[int]) -> dict[str, int]:
    """Period and offset by which the same of the kept layers are chosen as in the teacher (Jamba)."""
    found = {}
    for period, offset in _PERIODS:
        if period in values:
            wanted = [old % values[period] == values[offset] for old in kept]
            length = len(kept)
            candidates = [(length + 1, length), *((p, o) for p in range(1, length + 1) for o in range(p))]
            fitting = [(p, o) for p, o in candidates if [new % p == o for new in range(length)] == wanted]
            if not fitting:
                raise _CannotThinError(f"no {period} chooses among {length} layers as its {values[period]} does")
            found |= dict(zip((period, offset), fitting[0]))
    return found


def _sparse_steps(values: dict[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """Layers of experts named one by one where the teacher has one every so many layers (Qwen)."""
    if "decoder_sparse_step" not in values or "mlp_only_layers" not in values:
        return {}
    step, dense = values["decoder_sparse_step"], values["mlp_only_layers"] or []
    return {
        "decoder_sparse_step": 1,
        "mlp_only_layers": [new for new, old in enumerate(kept) if old in dense or (old + 1) % step],
    }


def _check_same_layers(teacher: PreTrainedModel, student: PreTrainedModel, kept: Sequence[int]) -> None:
    """Each layer of the student has the modules, shapes and settings of the teacher's layer that it comes from."""
    path, originals = decoder_layers(teacher)
    layers = cast(nn.ModuleList, student.get_submodule(path))
    if len(layers) != len(kept):
        raise _CannotThinError(f"with {len(kept)} layers it has {len(layers)} in {path}")
    for new, old in enumerate(kept):
        wanted, found = _description(originals[old]), _description(layers[new])
        for name in sorted(wanted.keys() | found.keys()):
            if not _equal(wanted.get(name), found.get(name)):
                raise _CannotThinError(
                    f"its layer {old} would differ as layer {new} of {len(kept)}: {name} {found.get(name)}, "
                    f"not {wanted.get(name)}"
                )
    _thinned_state(teacher, student, path, kept)


def _description(layer: nn.Module) -> dict[str, Any]:
    """All that a layer without weights can be compared by: its modules, the shapes of its tensors, plain settings."""
    described: dict[str, Any] = {name: tuple(tensor.shape) for name, tensor in layer.state_dict().items()}
    for path, module in layer.named_modules():
        described[f"{path}()"] = type(module).__name__
        for name, value in vars(module).items():
            plain = isinstance(value, bool | int | float | str | type(None))
            if plain and not name.startswith("_") and not name.endswith(_OWN_PLACE):
                described[f"{path}.{name}".lstrip(".")] = value
    return described


def _equal(wanted: Any, found: Any) -> bool:
    both = isinstance(wanted, float) and isinstance(found, float)
    return math.isclose(wanted, found, rel_tol=1e-6) if both else wanted == found


def _thinned_state(
    teacher: PreTrainedModel, student: PreTrainedModel, path: str, kept: Sequence[int]
) -> dict[str, Tensor]:
    """The teacher's tensors under the student's names; one that has a block a layer gives the blocks of those kept."""
    total, prefix = len(decoder_layers(teacher)[1]), f"{path}."
    renamed = {str(old): str(new) for new, old in enumerate(kept)}
    wanted, state = student.state_dict(), {}
    for name, tensor in teacher.state_dict().items():
        if name.startswith(prefix):
            old, dot, rest = name.removeprefix(prefix).partition(".")
            if old not in renamed:
                continue
            name = prefix + renamed[old] + dot + rest
        if name not in wanted:
            raise _CannotThinError(f"the student has no tensor {name}")
        state[name] = _blocks(name, tensor, wanted[name].shape, total, kept)
    if missing := wanted.keys() - state.keys():
        raise _CannotThinError(f"the teacher has no tensor {min(missing)}")
    return state


def _blocks(name: str, tensor: Tensor, shape: torch.Size, total: int, kept: Sequence[int]) -> Tensor:
    """A tensor in the student's shape: as it is, or the kept layers' blocks of the one dimension that differs."""
    if tensor.shape == shape:
        return tensor
    differing = [dim for dim, (old, new) in enumerate(zip(tensor.shape, shape)) if old != new]
    if tensor.ndim == len(shape) and len(differing) == 1:
        [dim] = differing
        size, rest = divmod(tensor.shape[dim], total)
        if not rest and shape[dim] == size * len(kept):
            return (
                tensor.unflatten(dim, (total, size))
                .index_select(dim, torch.tensor(kept, device=tensor.device))
                .flatten(dim, dim + 1)
            )
    raise _CannotThinError(f"tensor {name} has shape {list(tensor.shape)}, the student's {list(shape)}")


@torch.no_grad()
def _check_same_function(
    teacher: PreTrainedModel, student: PreTrainedModel, layers: nn.ModuleList, kept: Sequence[int]
) -> None:
    """Raise unless both compute the same logits of random tokens, the teacher without the layers that are not kept."""
    text = teacher.config.get_text_config()
    length = min(_TOKENS, getattr(text, "max_position_embeddings", None) or _TOKENS)
    ids = torch.randint(text.vocab_size, (1, length), generator=torch.Generator().manual_seed(0)).to(teacher.device)
    with runnable(teacher), runnable(student), _skipped(old for index, old in enumerate(layers) if index not in kept):
        wanted, found = (model.eval()(input_ids=ids, use_cache=False).logits.float() for model in (teacher, student))
    if not close(found, wanted):
        raise _CannotThinError(
            f"with {len(kept)} of its {len(layers)} layers it is another function: logits differ by "
            f"{relative_error(found, wanted):.1%}"
        )


@contextmanager
def _skipped(layers: Any) -> Iterator[None]:
    """These layers hand on the hidden states that they are given, in whatever form they return their own."""

    def hand_on(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        return hidden if isinstance(output, Tensor) else (hidden, *output[1:])

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_hook(hand_on, with_kwargs=True).remove)
        yield
