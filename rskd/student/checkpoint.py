"""Checkpoints: a Hugging Face directory with the state of training beside it.

    config.json, model.safetensors, tokenizer …  the student, fp32 master weights: loads with AutoModelForCausalLM
    optimizer.safetensors                        AdamW's moments as "<parameter>/<moment>"
    shards/                                      in place of both .safetensors, where the run is sharded (shards.py)
    training_log.jsonl                           one line for each step so far
    trainer.json                                 step, position of the loader, sha256 of every other file; written last

Nothing is pickled. Any number of ranks goes on from either form, sharded or not. Exporting a student is leaving out
all but the first line; it stays fp32, so nothing is lost, and `from_pretrained(dtype=…)` casts on loading.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from rskd import records
from rskd.errors import ConfigError, MissingOutputError
from rskd.full_disk import temporary_folder
from rskd.models.chat_template import end_of_turn_id
from rskd.models.digests import RESULT_FILE, TRAINER_FILE, Files, check_sizes, describe_files, read_record, whole_copy
from rskd.models.tokenizer import end_of_text_id
from rskd.storage import Store
from rskd.student.shards import begin_shards, is_sharded, moments, saveable_student

LOG_FILE = "training_log.jsonl"
_OPTIMIZER_FILE = "optimizer.safetensors"
_NOT_THE_STUDENT = {LOG_FILE, _OPTIMIZER_FILE, TRAINER_FILE, RESULT_FILE}


@dataclass(frozen=True)
class Progress:
    """How far training has come: all that is not a tensor."""

    step: int
    loader: dict[str, int]  # CacheLoader.state_dict()


class CheckpointWriter:
    """Writes the checkpoints of one run; one that is sharded on all ranks, any other on rank 0.

    A checkpoint holds everything that a bit-identical continuation needs, and the log so far.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        optimizer: Optimizer,
        *,
        converses: bool = False,
    ):
        self._student, self._tokenizer, self._optimizer = student, tokenizer, optimizer
        self._converses = converses
        self._background = ThreadPoolExecutor(1, "checkpoint")
        self._last: Future[None] | None = None
        sharded = isinstance(next(student.parameters()), DTensor)
        # Of its own, since training goes on meanwhile.
        self._group = cast(dist.ProcessGroup, dist.new_group(backend="gloo")) if sharded else None
        self.writes = sharded or not dist.is_initialized() or dist.get_rank() == 0  # whether this rank does

    def write(self, directory: Path, progress: Progress, log: Sequence[dict]) -> None:
        """Write a checkpoint of the state as it is now; not of a sharded run."""
        self._write(directory, progress, log, self._student.state_dict(), moments(self._optimizer))

    def begin(self, directory: Path, progress: Progress, log: Sequence[dict]) -> Future[None]:
        """Copy the state to the host and write it in the background, while training goes on; one at a time.

        The future is done when all that this rank writes is in `directory`, and of rank 0, trainer.json last.
        """
        if self._last is not None:
            self._last.result()
        if self._group is not None:
            shards = begin_shards(directory, self._student, self._optimizer, self._group)
            self._last = self._background.submit(self._finish_shards, shards, directory, progress, log)
        else:
            state = _on_host(self._student.state_dict()), _on_host(moments(self._optimizer))
            self._last = self._background.submit(self._write, directory, progress, log, *state)
        return self._last

    def _write(
        self,
        directory: Path,
        progress: Progress,
        log: Sequence[dict],
        weights: dict[str, Tensor],
        optimizer: dict[str, Tensor],
    ) -> None:
        export_student(self._student, self._tokenizer, directory, converses=self._converses, weights=weights)
        save_file(optimizer, directory / _OPTIMIZER_FILE)
        _write_log(directory, log)
        _write_progress(directory, progress, describe_files(directory))

    def _finish_shards(self, shards: Future[Any], directory: Path, progress: Progress, log: Sequence[dict]) -> None:
        assert self._group is not None
        is_first = self._group.rank() == 0
        if is_first:
            self._student.config.save_pretrained(directory)
            _generation_config(self._tokenizer, converses=self._converses).save_pretrained(directory)
            self._tokenizer.save_pretrained(directory)
            _write_log(directory, log)
        shards.result()
        files = [describe_files(directory)] * self._group.size()
        dist.all_gather_object(files, files[0], group=self._group)
        if is_first:
            _write_progress(directory, progress, {name: file for of_rank in files for name, file in of_rank.items()})


def _on_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies in the CPU's memory; of tied tensors one."""
    copies: dict[tuple[int, ...], Tensor] = {}
    found = {}
    for name, tensor in tensors.items():
        place = (tensor.data_ptr(), *tensor.shape)
        if place not in copies or not tensor.numel():
            copies[place] = tensor.detach().to("cpu", copy=True)
        found[name] = copies[place]
    return found


def _write_log(directory: Path, log: Sequence[dict]) -> None:
    (directory / LOG_FILE).write_text("".join(json.dumps(record) + "\n" for record in log))


def _write_progress(directory: Path, progress: Progress, files: Files) -> None:
    (directory / TRAINER_FILE).write_bytes(records.seal(asdict(progress) | {"files": files}))


def load_progress(directory: Path) -> tuple[Progress, list[dict]]:
    """Where the checkpoint stands, and the log up to there."""
    record = read_record(Store(str(directory)))
    if record is None:
        raise MissingOutputError(f"{directory}/{TRAINER_FILE} is missing: run rskd train")
    progress = Progress(record["step"], record["loader"])
    return progress, [json.loads(line) for line in (directory / LOG_FILE).read_text().splitlines()]


def export_student(
    student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    directory: Path,
    *,
    converses: bool = False,
    weights: dict[str, Tensor] | None = None,
) -> None:
    """Write a Hugging Face directory: weights as they are (tied ones once), config, generation config, tokenizer.

    The student stops where the documents that it learned from do; one that `converses` where the assistant's turn ends,
    too. The sampling settings of the model that it started from are not its own. `weights` is a state dict to write in
    place of the student's.
    """
    student.generation_config = _generation_config(tokenizer, converses=converses)
    student.save_pretrained(directory, state_dict=weights)
    tokenizer.save_pretrained(directory)


def _generation_config(tokenizer: PreTrainedTokenizerFast, *, converses: bool) -> GenerationConfig:
    end = end_of_text_id(tokenizer)
    end_of_turn = end_of_turn_id(tokenizer) if converses else None
    return GenerationConfig(
        eos_token_id=end if end_of_turn in (None, end) else [end_of_turn, end],
        pad_token_id=end if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )


@contextmanager
def hugging_face_directory(checkpoint: Path) -> Iterator[Path]:
    """A local checkpoint, or of a sharded one its student written to a temporary folder. In one process alone."""
    if not is_sharded(checkpoint):
        yield checkpoint
        return
    with temporary_folder(saveable_student(checkpoint).save_pretrained) as folder:
        for file in checkpoint.iterdir():
            if file.is_file() and file.name != "config.json":  # which save_pretrained completes
                shutil.copyfile(file, folder / file.name)
        yield folder


def export_checkpoint(checkpoint: str | Path, directory: str | Path) -> str:
    """Copy the student of a checkpoint, without the state of training, to a new directory; each local or s3://.

    Links, of which a snapshot of the hub consists, are copied as the files that they point to. Returns the directory.
    Raises ConfigError where `checkpoint` holds no student, or a link to nothing, or `directory` is not empty, and
    CorruptPartError where a file is not the one that was written.
    """
    source, target = Store(str(checkpoint)), Store(str(directory))
    names = list(source.sizes(recursive=True))
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
    with whole_copy(source) as (local, _), hugging_face_directory(local) as student:
        copy_student(student, target)
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
