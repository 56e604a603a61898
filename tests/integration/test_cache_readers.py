"""The examples of rskd/cache/README.md, run as they stand; DataLoader workers that read from an object store."""

import re
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_caches import ROUNDS, VOCAB, make_head, write_cache
from torch.utils.data import DataLoader

import rskd.cache
from rskd.cache.loader import CacheBatch, CacheLoader
from rskd.cache.reader import LogitCache

README = Path(rskd.cache.__file__).with_name("README.md").read_text()
SECTION = README.partition("## Read it in your own loop")[2]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", SECTION, re.MULTILINE | re.DOTALL)


def run(block: str, names: dict[str, Any]) -> None:
    exec(compile(block, "README.md", "exec"), names)


@pytest.fixture
def home(tmp_path: Path, tiny_teacher_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where caches/default and student are, as the examples say; the student's vocabulary is padded."""
    write_cache(str(tmp_path / "caches" / "default"))
    shutil.copytree(tiny_teacher_dir, tmp_path / "student")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def assert_same(ours: list[CacheBatch], theirs: list[CacheBatch]) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs):
        assert (one.step, one.epoch) == (other.step, other.epoch)
        for name in ("row_ids", "input_ids", "labels"):
            assert getattr(one, name).equal(getattr(other, name))
        assert one.targets is not None
        assert other.targets is not None
        assert one.targets.to_dense(VOCAB).equal(other.targets.to_dense(VOCAB))
        assert one.statistics["label_logprob"].equal(other.statistics["label_logprob"])


def test_the_training_examples(home: Path, capfd: pytest.CaptureFixture[str]):
    plain, workers, trainer = blocks("python")[:3]
    names: dict[str, Any] = {"__name__": "README"}
    torch.manual_seed(0)
    run(plain, names)
    losses = [float(loss) for loss in re.findall(r"step \d+: ([0-9.]+) nats/token", capfd.readouterr().out)]
    assert len(losses) == 10
    assert np.isfinite(losses).all()
    assert min(losses[7:]) < losses[0]  # the second epoch

    run(workers, names)
    assert torch.isfinite(names["loss"])
    assert_same(list(islice(names["loader"], 10)), list(islice(CacheLoader(names["cache"], global_batch=8), 10)))

    names["student"].load_state_dict(names["AutoModelForCausalLM"].from_pretrained("student").state_dict())
    run(trainer, names)
    logged = [log["loss"] for log in names["trainer"].state.log_history if "loss" in log]
    assert len(logged) == 4
    assert logged[0] == pytest.approx(losses[0], abs=1e-3)  # the same weights, batch and loss
    assert np.isfinite(logged).all()


def test_a_trainer_that_accumulates_has_the_loss_of_the_whole_batch(home: Path):
    plain, workers, trainer = blocks("python")[:3]
    logged = {}
    for size, steps in ((8, 1), (4, 2)):
        names: dict[str, Any] = {"__name__": "README"}
        accumulating = trainer.replace("batch_size=8", f"batch_size={size}, gradient_accumulation_steps={steps}")
        assert accumulating != trainer
        for block in (plain.partition("for batch in")[0], workers.partition("loader =")[0], accumulating):
            run(block, names)
        logged[size] = names["trainer"].state.log_history[0]["loss"]
    assert logged[4] == pytest.approx(logged[8], rel=1e-3)


@pytest.mark.parametrize(("layout", "uri"), [("plain", "caches/default"), ("compact", "caches/compact")])
def test_the_pandas_examples(home: Path, layout: str, uri: str):
    write_cache("caches/compact", head=make_head(sampling__layout="compact", tokenizer__most_frequent=[7, VOCAB - 1]))
    plain, compact = blocks("python")[3:]
    names: dict[str, Any] = {}
    run(plain, names)
    if layout == "compact":
        run(compact, names)
    cache = LogitCache.open(uri)
    assert len(names["windows"]) == cache.num_rows
    targets = cache.read_rows([0]).targets
    assert targets is not None
    dense = np.zeros((cache.seq_len, VOCAB))
    np.add.at(dense, (names["entries"].position, names["entries"].token), names["entries"].weight)
    np.testing.assert_allclose(dense, targets.to_dense(VOCAB)[0], rtol=1e-6)


def test_the_sql_example(home: Path):
    import duckdb

    [query] = blocks("sql")
    found = duckdb.sql(query).fetchall()
    targets = LogitCache.open("caches/default").read_rows(range(59)).targets
    assert targets is not None
    expected = targets.to_dense(VOCAB).sum((0, 1))
    assert ROUNDS == 22
    assert [weight for _, weight in found] == pytest.approx(expected.sort(descending=True).values[:10].tolist())


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_read_an_object_store(object_store, workers: int):
    uri = f"{object_store.make_bucket()}/cache"
    write_cache(uri)
    loader = CacheLoader(LogitCache.open(uri), global_batch=8, start_step=2)
    assert_same(
        list(islice(DataLoader(loader, batch_size=None, num_workers=workers), 10)),
        list(islice(CacheLoader(LogitCache.open(uri), global_batch=8, start_step=2), 10)),
    )
