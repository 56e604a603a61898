"""A sharded student learns what a replicated one does, and either goes on from the other's checkpoint."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from device_students import VOCAB, make_batch, make_student
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from rskd.cache.loader import CacheBatch
from rskd.config import ObjectiveConfig, TrainConfig
from rskd.student.checkpoint import CheckpointWriter, Progress, export_checkpoint, load_progress
from rskd.student.sharding import distribute, student_of
from rskd.student.shards import load_optimizer, restored_student
from rskd.student.trainer import StudentLoss, make_optimizer, train

SEQ_LEN, GLOBAL_BATCH = 8, 5
CPU = torch.device("cpu")
STEPS = 4
SIZES = {
    "vocab_size": VOCAB + 14,
    "hidden_size": 18,
    "intermediate_size": 33,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
}
VARIANTS = {
    "none": {},
    "none-blocks": {"activation_checkpointing": "blocks"},
    "full": {"sharding": "full"},
    "full-blocks": {"sharding": "full", "activation_checkpointing": "blocks"},
}
COMPILED = {
    "none-compiled": {"compile": True},
    "full-blocks-compiled": {"sharding": "full", "activation_checkpointing": "blocks", "compile": True},
}
RESUMED = {"full-from-full": "full", "none-from-full": "full", "full-from-none": "none", "full-from-one": "one"}


class Batches:
    """A loader in memory: step s of a rank is a contiguous slice of a seeded global batch, some of it without loss.

    Neither the batch nor a dimension of the student is a multiple of the ranks.
    """

    def __init__(self, start_step: int, *, rank: int, world_size: int):
        self.start_step, self.rank, self.world_size = start_step, rank, world_size

    def __iter__(self):
        step = self.start_step
        while True:
            yield self._batch(step)
            step += 1

    def _batch(self, step: int) -> CacheBatch:
        whole = make_batch(step, GLOBAL_BATCH, SEQ_LEN)
        rows = slice(*(GLOBAL_BATCH * r // self.world_size for r in (self.rank, self.rank + 1)))
        return replace(
            whole,
            row_ids=whole.row_ids[rows],
            input_ids=whole.input_ids[rows],
            labels=whole.labels[rows],
            targets=whole.targets and whole.targets[rows],
        )


def _run(
    folder: Path,
    name: str,
    restored: str | None = None,
    *,
    tokenizer: Path,
    rank: int = 0,
    world_size: int = 1,
    **settings,
) -> list[float]:
    """Train, or go on from a checkpoint after half of the steps, and leave that in `folder`/`name`; the losses."""
    config = TrainConfig(
        steps=STEPS,
        global_batch=GLOBAL_BATCH,
        micro_batch=2,
        lr=1e-2,
        min_lr=1e-3,
        checkpoint_every=STEPS // 2,
        precision="float32",
        **settings,
    )

    def build():
        if restored is None:
            return make_student(**SIZES)
        return restored_student(folder / restored, "auto", isolated=True)

    make_loss = partial(StudentLoss, objective=ObjectiveConfig(), vocab_size=VOCAB, end_of_text_id=0)
    loss = distribute(build, make_loss, config, CPU)
    student = student_of(loss)
    assert isinstance(next(student.parameters()), DTensor) == (config.sharding == "full")
    optimizer = make_optimizer(student, config)
    start = 0
    if restored is not None:
        start = load_progress(folder / restored)[0].step
        load_optimizer(folder / restored, optimizer)
    writer = CheckpointWriter(student, AutoTokenizer.from_pretrained(tokenizer), optimizer)
    pending, losses = [], []

    def save(step: int) -> None:
        if writer.writes and step == STEPS // 2 and restored is None:
            pending.append(writer.begin(folder / name, Progress(step, {"epoch": 0, "step": step}), []))

    train(
        loss,
        optimizer,
        Batches(start, rank=rank, world_size=world_size),  # pyright: ignore[reportArgumentType]
        config,
        start_step=start,
        device=CPU,
        log=lambda step, metrics: losses.append(metrics["loss"]),
        save=save,
    )
    for written in pending:  # in the background, while the second half was trained
        written.result()
    return losses


def _worker(rank: int, world_size: int, folder: Path, tokenizer: Path, names: list[str]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    run = partial(_run, folder, tokenizer=tokenizer, rank=rank, world_size=world_size)
    found = {}
    for name in names:
        if name in RESUMED:
            found[name] = run(name, RESUMED[name], sharding=name.split("-")[0])
        else:
            found[name] = run(name, **(VARIANTS | COMPILED)[name])
        dist.barrier()
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def _on_two_ranks(folder: Path, tokenizer: Path, names: list[str]) -> dict[str, list[float]]:
    command = [sys.executable, __file__, str(folder), str(tokenizer), *names]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}  # helpers of tests, too
    ranks = [subprocess.Popen([*command[:2], str(rank), *command[2:]], env=environment) for rank in range(2)]
    assert [rank.wait(timeout=300) for rank in ranks] == [0, 0]
    first, second = (json.loads((folder / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    (folder / "store").unlink(missing_ok=True)
    return first


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sharding")


@pytest.fixture(scope="module")
def alone(folder: Path, tiny_tokenizer_dir: Path) -> list[float]:
    """The losses of one rank, which leaves a checkpoint `one`."""
    return _run(folder, "one", tokenizer=tiny_tokenizer_dir)


@pytest.fixture(scope="module")
def losses(folder: Path, alone, tiny_tokenizer_dir: Path) -> dict[str, list[float]]:
    return _on_two_ranks(folder, tiny_tokenizer_dir, [*VARIANTS, *RESUMED])


@pytest.mark.parametrize("name", VARIANTS)
def test_the_losses_are_those_of_one_rank(losses, alone, name: str):
    assert losses[name] == pytest.approx(alone, abs=1e-5)


def test_a_run_goes_on_sharded_or_not_whatever_it_was(losses, alone):
    assert losses["full-from-full"] == losses["full"][STEPS // 2 :]  # bit for bit
    for name in RESUMED:
        assert losses[name] == pytest.approx(alone[STEPS // 2 :], abs=1e-5)


def test_one_rank_goes_on_from_the_shards_of_two(folder: Path, losses, alone, tiny_tokenizer_dir: Path):
    found = _run(folder, "one-from-full", "full", tokenizer=tiny_tokenizer_dir)
    assert found == pytest.approx(alone[STEPS // 2 :], abs=1e-5)


def test_each_rank_wrote_its_shards_and_nothing_is_pickled(folder: Path, losses):
    shards = sorted(path.name for path in (folder / "full" / "shards").iterdir())
    assert [name[: len("shard-00001")] for name in shards] == ["shard-00001", "shard-00002"]
    assert {path.suffix for path in (folder / "full").rglob("*") if path.is_file()} <= {
        ".json",
        ".safetensors",
        ".jsonl",
    }
    sizes = [path.stat().st_size for path in (folder / "full" / "shards").iterdir()]
    assert max(sizes) < 1.5 * min(sizes)


def test_the_exported_student_is_the_same_directory(folder: Path, losses, tmp_path: Path):
    for name in ("full", "none"):
        export_checkpoint(folder / name, tmp_path / name)
    full, none = ({path.name for path in (tmp_path / name).iterdir()} for name in ("full", "none"))
    assert full == none
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= full
    for name in full - {"model.safetensors"}:
        assert (tmp_path / "full" / name).read_text() == (tmp_path / "none" / name).read_text()
    found, wanted = (AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("full", "none"))
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_blocks_compute_the_same(alone, tiny_tokenizer_dir: Path, tmp_path: Path, name: str):
    assert _on_two_ranks(tmp_path, tiny_tokenizer_dir, [name])[name] == pytest.approx(alone, abs=1e-5)


if __name__ == "__main__":
    torch.set_num_threads(1)
    _worker(int(sys.argv[1]), 2, Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
