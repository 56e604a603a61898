"""Loading and building causal language models, for teacher and student alike.

    directory ─► tensor_files (whole?) ─► from_pretrained ─► all tensors, and only its tensors? ─► check_computation
    configuration ─────────────────────► from_config ───────────────────────────────────────────► check_computation

A model is loaded right or refused in one line: nothing is completed with random weights, nothing left over is ignored.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import is_flash_attn_2_available, logging

from rskd.errors import ConfigError, RskdError, first_line
from rskd.models.causal_lm import FLASH_ATTENTION, TOLERANCE, attention_without_flash
from rskd.models.checks import check_computation
from rskd.models.files import hub_snapshot, tensor_files

_HALF = (torch.float16, torch.bfloat16)
Made = TypeVar("Made")


def load_model(
    directory: str,
    attention: str = "auto",
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    isolated: bool = False,
    trust_remote_code: bool = False,
    named: str = "",
) -> PreTrainedModel:
    """The causal LM in `directory`, or of a hub id, in evaluation mode; safetensors only.

    `attention` is that of the configuration (`_attentions`); `isolated` says that documents of a window will be.
    Raises ConfigError, beginning with `named`, for files that are not whole or do not fit each other, and for a model
    that rskd would compute wrongly.
    """
    named = named or f"model {directory}"
    if not Path(directory).is_dir():
        directory = hub_snapshot(directory, revision=None)
    files = tensor_files(directory, named)
    config = load_config(directory, named=named, trust_remote_code=trust_remote_code)

    def load(implementation: str | None) -> tuple[PreTrainedModel, dict[str, Any]]:
        return AutoModelForCausalLM.from_pretrained(  # pyright: ignore[reportReturnType]
            directory,
            dtype=dtype,
            device_map={"": device},
            attn_implementation=implementation,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # so that they are reported, and refused below by name
            output_loading_info=True,
        )

    model, info = _with_attention(load, _attentions(config, attention, dtype, device, named), named)
    _check_weights(info, files, config, named)
    _check_finite(model, files, named)
    check_computation(model, named, isolated=isolated)
    return model


def new_model(
    config: PreTrainedConfig,
    attention: str = "auto",
    *,
    seed: int,
    isolated: bool = False,
    named: str,
) -> PreTrainedModel:
    """A causal LM of this configuration with random weights, a pure function of `seed`, in fp32 on the CPU.

    Raises ConfigError as `load_model` does.
    """

    def build(implementation: str | None) -> PreTrainedModel:
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=implementation)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _with_attention(build, _attentions(config, attention, torch.float32, "cpu", named), named)
    check_computation(model.eval(), named, isolated=isolated)
    return model


def load_config(directory: str, *, named: str = "", trust_remote_code: bool = False) -> PreTrainedConfig:
    """The configuration of a model; ConfigError, beginning with `named`, if there is none that Transformers knows."""
    with _explained(named or f"model {directory}"):
        return AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code)


def check_attention(wanted: str, named: str) -> None:
    """ConfigError, beginning with `named`, for an attention implementation that this environment lacks."""
    if wanted == FLASH_ATTENTION and not is_flash_attn_2_available():
        raise ConfigError(f"{named}: attention=flash_attention_2 needs flash-attn on a GPU: pip install 'rskd[gpu]'")


def num_parameters(directory: str, *, trust_remote_code: bool = False) -> int:
    """Parameters of a model, from its configuration alone; tied weights count once."""
    config = load_config(directory, trust_remote_code=trust_remote_code)
    return model_without_weights(config, trust_remote_code=trust_remote_code).num_parameters()


def num_head_parameters(directory: str, *, trust_remote_code: bool = False) -> int:
    """Weights of the output head of a model, from its configuration alone."""
    config = load_config(directory, trust_remote_code=trust_remote_code)
    head: Any = model_without_weights(config, trust_remote_code=trust_remote_code).get_output_embeddings()
    return head.weight.numel()


def model_without_weights(config: PreTrainedConfig, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """A model of this configuration on the meta device: its modules and shapes, in no time and memory."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(copy.deepcopy(config), trust_remote_code=trust_remote_code)


def _attentions(
    config: PreTrainedConfig, wanted: str, dtype: torch.dtype, device: torch.device | str, named: str
) -> list[str | None]:
    """Attention implementations to try in turn; None is Transformers' own choice, sdpa where the architecture has it.

    Where sdpa is not exact it means eager. FlashAttention is for half precision on a GPU.
    """
    check_attention(wanted, named)
    exact = attention_without_flash(config)
    if wanted != "auto":
        return [exact if wanted == "sdpa" else wanted]
    fast = torch.device(device).type == "cuda" and dtype in _HALF and is_flash_attn_2_available()
    return [*([FLASH_ATTENTION] if fast else []), None if exact == "sdpa" else exact]


def _with_attention(make: Callable[[str | None], Made], implementations: list[str | None], named: str) -> Made:
    """What `make` makes with the first of these attention implementations that the architecture has."""
    for implementation in implementations[:-1]:
        with suppress(ValueError, ImportError):
            return make(implementation)
    last = implementations[-1]
    fix = f"correct it, or set attention=auto in place of {last}" if last else "name a causal LM"
    with _explained(named, fix):
        return make(last)


def _check_weights(info: Mapping[str, Any], files: Mapping[str, str], config: PreTrainedConfig, named: str) -> None:
    """ConfigError naming a tensor and its file, unless every tensor of the model came from one and all were used."""
    all_files = " ".join(sorted(set(files.values()))[:3])
    if missing := sorted(info["missing_keys"]):
        raise _misfit(named, missing, f"is missing in {all_files}", "download the model again")
    if misshapen := sorted(info["mismatched_keys"]):
        name, found, wanted = misshapen[0]
        sizes = f"of {files.get(name, all_files)} has shape {list(found)} but config.json means {list(wanted)}"
        raise _misfit(named, [entry[0] for entry in misshapen], sizes)
    if unexpected := sorted(_without_other_modalities(info["unexpected_keys"], files, config)):
        where = files.get(unexpected[0], all_files)
        raise _misfit(named, unexpected, f"of {where} has no place in the model of config.json")
    if errors := info.get("error_msgs"):
        raise ConfigError(f"{named} cannot be loaded ({first_line(errors[0])}): download the model again")


def _check_finite(model: PreTrainedModel, files: Mapping[str, str], named: str) -> None:
    """ConfigError for weights that are NaN or infinite: damaged, or too large for the dtype that they are cast to."""
    for name, parameter in model.named_parameters():
        if parameter.dtype in TOLERANCE and not parameter.isfinite().all():
            dtype = str(parameter.dtype).removeprefix("torch.")
            where = f" of {files[name]}" if name in files else ""
            raise ConfigError(
                f"{named}: tensor {name}{where} has values that are not finite in {dtype}: download the model again, "
                "or choose a wider dtype"
            )


def _without_other_modalities(unused: set[str], files: Mapping[str, str], config: PreTrainedConfig) -> set[str]:
    """`unused` less the tensors of whole towers, such as vision's, beside the text model of a larger one."""
    if config.get_text_config() is config:
        return unused
    towers = {_tower(name) for name in files.keys() - unused}
    return {name for name in unused if _tower(name) in towers}


def _tower(tensor: str) -> str:
    return ".".join(tensor.split(".")[:2])


def _misfit(named: str, tensors: Sequence[str], problem: str, fix: str = "restore the config.json of these weights"):
    others = f" (and {len(tensors) - 1} more)" if len(tensors) > 1 else ""
    return ConfigError(f"{named}: tensor {tensors[0]}{others} {problem}: {fix}, or name another model")


@contextmanager
def _explained(named: str, fix: str = "name a causal LM") -> Iterator[None]:
    """ConfigError for whatever Transformers raises of a model that it cannot load: it raises nearly anything."""
    try:
        with _quiet():
            yield
    except (RskdError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ConfigError(f"{named} cannot be loaded ({first_line(error)}): {fix}") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Transformers' own report of missing tensors and its progress bar: what is wrong is raised."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
