"""Checkpoints: a Hugging Face directory with the state of training beside it.

    config.json, model.safetensors, tokenizer …  the student, fp32 master weights: loads with AutoModelForCausalLM
    optimizer.safetensors                        AdamW's moments as "<parameter>/<moment>"
    training_log.jsonl                           one line for each step so far
    trainer.json                                 step and position of the loader

Nothing is pickled. Exporting a student is leaving out all but the first line; it stays fp32, so nothing is lost, and
`from_pretrained(dtype=…)` casts on loading.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch.optim import Optimizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rskd.errors import ConfigError
from rskd.storage import Store

LOG_FILE = "training_log.jsonl"
RESULT_FILE = "rskd.json"  # what a finished student was made from; written last
_OPTIMIZER_FILE = "optimizer.safetensors"
TRAINER_FILE = "trainer.json"
_NOT_THE_STUDENT = {LOG_FILE, _OPTIMIZER_FILE, TRAINER_FILE, RESULT_FILE}


@dataclass(frozen=True)
class Progress:
    """How far training has come: all that is not a tensor."""

    step: int
    loader: dict[str, int]  # CacheLoader.state_dict()


def save_checkpoint(
    directory: Path,
    student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    optimizer: Optimizer,
    progress: Progress,
    log: Sequence[dict],
) -> None:
    """Write everything that a bit-identical continuation needs, and the log so far."""
    export_student(student, tokenizer, directory)
    state = optimizer.state_dict()
    moments = {
        f"{name}/{moment}": tensor.cpu()
        for group in state["param_groups"]
        for name, index in zip(group["param_names"], group["params"])
        for moment, tensor in state["state"].get(index, {}).items()
    }
    save_file(moments, directory / _OPTIMIZER_FILE)
    (directory / LOG_FILE).write_text("".join(json.dumps(record) + "\n" for record in log))
    (directory / TRAINER_FILE).write_text(json.dumps(asdict(progress)))


def load_optimizer(directory: Path, optimizer: Optimizer) -> None:
    """Put the saved moments into a fresh optimizer over the student that was loaded from the same checkpoint."""
    state = optimizer.state_dict()
    indices = {
        name: index for group in state["param_groups"] for name, index in zip(group["param_names"], group["params"])
    }
    for key, tensor in load_file(directory / _OPTIMIZER_FILE).items():
        name, moment = key.rsplit("/", 1)
        state["state"].setdefault(indices[name], {})[moment] = tensor
    optimizer.load_state_dict(state)


def load_progress(directory: Path) -> tuple[Progress, list[dict]]:
    """Where the checkpoint stands, and the log up to there."""
    progress = Progress(**json.loads((directory / TRAINER_FILE).read_text()))
    return progress, [json.loads(line) for line in (directory / LOG_FILE).read_text().splitlines()]


def export_student(student: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Write a Hugging Face directory: weights as they are (tied ones once), config, generation config, tokenizer."""
    student.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def export_checkpoint(checkpoint: str | Path, directory: str | Path) -> str:
    """Copy the student of a checkpoint, without the state of training, to a new directory; each local or s3://.

    Links, of which a snapshot of the hub consists, are copied as the files that they point to. Returns the directory.
    Raises ConfigError where `checkpoint` holds no student, or a link to nothing, or `directory` is not empty.
    """
    source, target = Store(str(checkpoint)), Store(str(directory))
    names = [name for name in source.list() if name not in _NOT_THE_STUDENT]
    if "config.json" not in names or not any(name.endswith(".safetensors") for name in names):
        raise ConfigError(f"checkpoint {source.uri} holds no student: name a folder with config.json and *.safetensors")
    missing = next((name for name in names if not source.exists(name)), None)
    if missing is not None:
        raise ConfigError(
            f"{missing} of checkpoint {source.uri} is a link whose target is missing: restore or remove it"
        )
    target.check_writable("directory")
    if target.list():
        raise ConfigError(f"directory {target.uri} is not empty: name a new one")
    target.fs.makedirs(target.path, exist_ok=True)
    with source.local_copy() as local:
        for name in names:
            target.fs.put_file(f"{local}/{name}", target.full_path(name))
    return target.uri
