"""Checkpoints: a Hugging Face directory with the state of training beside it.

    config.json, model.safetensors, tokenizer …  the student, fp32 master weights: loads with AutoModelForCausalLM
    optimizer.safetensors                        AdamW's moments as "<parameter>/<moment>"
    training_log.jsonl                           one line for each step so far
    trainer.json                                 step, position of the loader, sha256 of every other file; written last

Nothing is pickled. Exporting a student is leaving out all but the first line; it stays fp32, so nothing is lost, and
`from_pretrained(dtype=…)` casts on loading.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch.optim import Optimizer
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from rskd import records
from rskd.errors import ConfigError, MissingOutputError
from rskd.models.chat_template import end_of_turn_id
from rskd.models.digests import RESULT_FILE, TRAINER_FILE, Files, check_sizes, describe_files, read_record, whole_copy
from rskd.models.tokenizer import end_of_text_id
from rskd.storage import Store

LOG_FILE = "training_log.jsonl"
_OPTIMIZER_FILE = "optimizer.safetensors"
_NOT_THE_STUDENT = {LOG_FILE, _OPTIMIZER_FILE, TRAINER_FILE, RESULT_FILE}


@dataclass(frozen=True)
class Progress:
    """How far training has come: all that is not a tensor."""

    step: int
    loader: dict[str, int]  # CacheLoader.state_dict()


def save_checkpoint(
    directory: Path,
    student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    optimizer: Optimizer,
    progress: Progress,
    log: Sequence[dict],
    *,
    converses: bool = False,
) -> None:
    """Write everything that a bit-identical continuation needs, and the log so far."""
    export_student(student, tokenizer, directory, converses=converses)
    state = optimizer.state_dict()
    moments = {
        f"{name}/{moment}": tensor.cpu()
        for group in state["param_groups"]
        for name, index in zip(group["param_names"], group["params"])
        for moment, tensor in state["state"].get(index, {}).items()
    }
    save_file(moments, directory / _OPTIMIZER_FILE)
    (directory / LOG_FILE).write_text("".join(json.dumps(record) + "\n" for record in log))
    (directory / TRAINER_FILE).write_bytes(records.seal(asdict(progress) | {"files": describe_files(directory)}))


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
    record = read_record(Store(str(directory)))
    if record is None:
        raise MissingOutputError(f"{directory}/{TRAINER_FILE} is missing: run rskd train")
    progress = Progress(record["step"], record["loader"])
    return progress, [json.loads(line) for line in (directory / LOG_FILE).read_text().splitlines()]


def export_student(
    student: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, directory: Path, *, converses: bool = False
) -> None:
    """Write a Hugging Face directory: weights as they are (tied ones once), config, generation config, tokenizer.

    The student stops where the documents that it learned from do; one that `converses` where the assistant's turn ends,
    too. The sampling settings of the model that it started from are not its own.
    """
    end = end_of_text_id(tokenizer)
    end_of_turn = end_of_turn_id(tokenizer) if converses else None
    pad = end if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    student.generation_config = GenerationConfig(
        eos_token_id=end if end_of_turn in (None, end) else [end_of_turn, end],
        pad_token_id=pad,
        bos_token_id=tokenizer.bos_token_id,
    )
    student.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def export_checkpoint(checkpoint: str | Path, directory: str | Path) -> str:
    """Copy the student of a checkpoint, without the state of training, to a new directory; each local or s3://.

    Links, of which a snapshot of the hub consists, are copied as the files that they point to. Returns the directory.
    Raises ConfigError where `checkpoint` holds no student, or a link to nothing, or `directory` is not empty, and
    CorruptPartError where a file is not the one that was written.
    """
    source, target = Store(str(checkpoint)), Store(str(directory))
    names = source.list()
    if "config.json" not in names or not any(name.endswith(".safetensors") for name in names):
        if read_record(source) is not None:
            raise MissingOutputError(f"{source.uri} has no weights, or no config.json: run rskd train")
        raise ConfigError(f"checkpoint {source.uri} holds no student: name a folder with config.json and *.safetensors")
    missing = next((name for name in names if not source.exists(name)), None)
    if missing is not None:
        raise ConfigError(
            f"{missing} of checkpoint {source.uri} is a link whose target is missing: restore or remove it"
        )
    target.check_writable("directory")
    if target.list():
        raise ConfigError(f"directory {target.uri} is not empty: name a new one")
    with whole_copy(source) as (local, _):
        copy_student(local, target)
    return target.uri


def copy_student(checkpoint: Path, target: Store) -> None:
    """Copy the Hugging Face directory that a local folder holds, without the state of training."""
    for name in Store(str(checkpoint)).sizes(recursive=True):
        if name not in _NOT_THE_STUDENT:
            target.put(checkpoint / name, name)


def files_of_student(files: Files) -> Files:
    """Of the files of a checkpoint, those that its finished student has: with the log."""
    return {name: file for name, file in files.items() if name not in _NOT_THE_STUDENT or name == LOG_FILE}


def student_digest(record: dict[str, Any]) -> str:
    """sha256 of the files of a finished student, by its record; its log, which tells the time, is left out."""
    files = record.get("files", {})  # older records have none
    return records.digest({name: file["sha256"] for name, file in files.items() if name != LOG_FILE})


def finished_student(uri: str, name: str) -> dict[str, Any]:
    """The record of a student whose training ended, and whose files are all there in their sizes.

    Raises MissingOutputError and CorruptPartError.
    """
    folder = Store(uri)
    record = records.read(folder, RESULT_FILE)
    if record is None:
        raise MissingOutputError(f"student {folder.uri} does not exist: run rskd train --student {name}")
    check_sizes(folder, record)
    return record
