"""What can go wrong while a cache is written, made to happen: afterwards a rerun completes it, to the same bytes."""

import json
import os
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from pydoc_data.topics import topics

import boto3
import psutil
import pytest
import ray
import yaml

from rskd.cache.inspection import inspect
from rskd.cache.manifest import PartRecord, record_name
from rskd.cache.reader import LogitCache
from rskd.cache.verify import verify
from rskd.config import DistillConfig, validate_config
from rskd.errors import ConfigError, MissingOutputError, StoreAccessError
from rskd.jobs.cache import cache_logits
from rskd.jobs.pack import pack_corpus
from rskd.jobs.train import train_student
from rskd.storage import Store

pytestmark = pytest.mark.usefixtures("ray_local")

MakeConfig = Callable[[str], DistillConfig]


@pytest.fixture(scope="module")
def flawless(tmp_path_factory: pytest.TempPathFactory, tiny_teacher_dir: Path, ray_local) -> DistillConfig:
    """A packed corpus and its cache, made without a fault."""
    home = tmp_path_factory.mktemp("faults")
    text = home / "text"
    text.mkdir()
    for name in sorted(topics)[:6]:
        (text / f"{name}.txt").write_text(topics[name])
    config = validate_config(
        {
            "name": "flawless",
            "storage": {"root": str(home / "root")},
            "corpus": {
                "source": {"kind": "text", "uri": str(text)},
                "seq_len": 32,
                "eval_windows": 2,
                "windows_per_part": 6,
            },
            "teacher": {
                "model": str(tiny_teacher_dir),
                "dtype": "float32",
                "batch_windows": 2,
                "threads_per_worker": 1,
            },
            "train": {
                "steps": 16,
                "global_batch": 4,
                "precision": "float32",
                "threads_per_worker": 1,
                "checkpoint_every": 2,
                "max_failures": 0,
            },
            "tracking": {"uri": f"sqlite:///{home}/mlflow.db"},
        }
    )
    pack_corpus(config)
    cache_logits(config)
    return config


@pytest.fixture
def make_config(flawless: DistillConfig) -> MakeConfig:
    """A function from a root to a config like `flawless` of the same packed corpus, its cache not begun."""

    def make(root: str) -> DistillConfig:
        config = flawless.model_copy(
            update={
                "name": f"run-{uuid.uuid4().hex[:8]}",
                "storage": flawless.storage.model_copy(update={"root": root}),
            }
        )
        source, target = Store(f"{flawless.home}/corpus"), Store(f"{config.home}/corpus")
        for name in source.sizes(recursive=True):
            target.write(name, source.read(name))
        return config

    return make


@pytest.fixture(params=["disk", pytest.param("object store", marks=pytest.mark.slow)])
def config(request: pytest.FixtureRequest, make_config: MakeConfig, tmp_path: Path) -> DistillConfig:
    """What the test caches, on either kind of store."""
    if request.param == "disk":
        return make_config(str(tmp_path / "root"))
    return make_config(request.getfixturevalue("object_store").make_bucket())


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[DistillConfig], subprocess.Popen[str]]]:
    """A function that starts `rskd cache` in a process of its own, with a Ray of its own."""
    started: list[subprocess.Popen[str]] = []

    def start(config: DistillConfig, **environment: str) -> subprocess.Popen[str]:
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True)))
        command = [sys.executable, "-c", "from rskd.cli import main; main()", "cache", str(file)]
        pipe, environment = subprocess.PIPE, os.environ | environment
        started.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=tmp_path, env=environment))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            kill_with_children(process)


def kill_with_children(process: subprocess.Popen[str]) -> None:
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    process.wait()


def begin_without(config: DistillConfig, flawless: DistillConfig, part: int) -> PartRecord:
    """Make the cache of `config` that of `flawless` but for one part, which it returns."""
    source, target = Store(flawless.cache_uri("default")), Store(config.cache_uri("default"))
    lacking = LogitCache.open(source.uri).manifest.parts[part]
    for name in source.sizes(recursive=True).keys() - {"manifest.json", record_name(part), lacking.file}:
        target.write(name, source.read(name))
    return lacking


def commit_records(config: DistillConfig) -> dict[str, bytes]:
    store = Store(f"{config.cache_uri('default')}/parts")
    return {name: store.read(name) for name in store.list() if name.endswith(".json")}


def wait_for_commits(config: DistillConfig, number: int, is_running: Callable[[], bool]) -> None:
    store = Store(f"{config.cache_uri('default')}/parts")
    while sum(name.endswith(".json") for name in store.list()) < number:
        assert is_running()
        time.sleep(0.02)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a file system of its own needs the right to mount ({mounted.stderr.strip()})")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def check_finished(config: DistillConfig, flawless: DistillConfig, kept: dict[str, bytes] | None = None) -> None:
    """The cache is whole and the same as `flawless`, and the commit records `kept` are as they were."""
    uri = config.cache_uri("default")
    shas, expected = (
        [p.sha256 for p in LogitCache.open(c.cache_uri("default")).manifest.parts] for c in (config, flawless)
    )
    assert shas == expected
    assert verify(uri).ok
    for name, record in (kept or {}).items():
        assert Store(f"{uri}/parts").read(name) == record


def test_a_killed_driver(config: DistillConfig, flawless: DistillConfig, start):
    driver = start(config)

    def is_running() -> bool:
        assert driver.poll() is None, driver.stderr.read()
        return True

    wait_for_commits(config, 2, is_running)
    kill_with_children(driver)
    kept, uri = commit_records(config), config.cache_uri("default")
    expected = len(LogitCache.open(flawless.cache_uri("default")).manifest.parts)
    assert 2 <= len(kept) < expected
    found = inspect(uri)
    assert (found["parts"], found["parts_expected"]) == (len(kept), expected)
    with pytest.raises(MissingOutputError, match=f"{len(kept)} of {expected} parts"):
        LogitCache.open(uri)
    assert LogitCache.open(uri, allow_partial=True).num_rows > 0
    cache_logits(config)
    check_finished(config, flawless, kept)


def test_a_killed_actor(config: DistillConfig, flawless: DistillConfig):
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(cache_logits, config)
        wait_for_commits(config, 2, job.running)
        [actor] = [p for p in psutil.Process().children(recursive=True) if p.name().startswith("ray::MapWorker")]
        actor.kill()
        kept = commit_records(config)
        assert len(kept) < job.result()["default"]["parts"]
    check_finished(config, flawless, kept)
    deadline = time.monotonic() + 60
    while not (retries := exported("rskd_retries_total", config)) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert retries == [1.0]


def exported(metric: str, config: DistillConfig) -> list[float]:
    """What this Ray exports of a metric for this distillation."""
    [node] = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    lines = urllib.request.urlopen(url, timeout=30).read().decode().splitlines()
    ours = [line for line in lines if line.startswith(f"ray_{metric}{{") and f'distillation="{config.name}"' in line]
    return [float(line.rsplit(" ", 1)[1]) for line in ours]


@pytest.mark.e2e
def test_a_killed_object_store(object_store, make_config: MakeConfig, flawless: DistillConfig):
    config = make_config(object_store.make_bucket())
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(cache_logits, config)
        wait_for_commits(config, 2, job.running)
        with object_store.killed():
            time.sleep(5)
            assert not job.done()
        job.result()
    check_finished(config, flawless)


@pytest.mark.slow
def test_two_jobs_at_once(config: DistillConfig, flawless: DistillConfig, start):
    for job in [start(config), start(config)]:
        _, errors = job.communicate(timeout=300)
        assert job.returncode == 0, errors
    check_finished(config, flawless)


def test_a_full_disk_and_then_a_read_only_one(small_disk: Path, make_config: MakeConfig, flawless: DistillConfig):
    config = make_config(str(small_disk))
    filler = small_disk / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    os.truncate(filler, filler.stat().st_size - 100_000)
    with pytest.raises(StoreAccessError, match=r"part-0.* cannot be written \(No space left on device\)"):
        cache_logits(config)
    kept = commit_records(config)
    assert 0 < len(kept) < len(LogitCache.open(flawless.cache_uri("default")).manifest.parts)
    assert not [name for name in Store(config.home).sizes(recursive=True, temporary=True) if ".tmp-" in name]
    filler.unlink()

    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(ConfigError, match=r"storage\.root: .*Read-only file system"):
        cache_logits(config)
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    cache_logits(config)
    check_finished(config, flawless, kept)


def test_a_refused_write(object_store, make_config: MakeConfig, flawless: DistillConfig, start):
    config = make_config(object_store.make_bucket())
    begin_without(config, flawless, 1)
    kept = commit_records(config)
    reader = {"AWS_ACCESS_KEY_ID": object_store.reader_key, "AWS_SECRET_ACCESS_KEY": object_store.reader_secret}
    refused = start(config, **reader)
    _, errors = refused.communicate(timeout=60)
    assert refused.returncode == 3
    [line] = errors.splitlines()
    assert object_store.endpoint in line
    assert config.storage.root.removeprefix("s3://") in line
    assert not any(key in line for key in reader.values())
    assert commit_records(config) == kept
    cache_logits(config)
    check_finished(config, flawless, kept)


def test_an_upload_that_was_never_completed(object_store, make_config: MakeConfig, flawless: DistillConfig):
    config = make_config(object_store.make_bucket())
    lacking = begin_without(config, flawless, 1)
    kept = commit_records(config)
    bucket, _, key = f"{config.cache_uri('default')}/{lacking.file}".removeprefix("s3://").partition("/")
    client = boto3.client("s3")
    upload = client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
    client.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=1, Body=bytes(5 * 2**20))
    cache_logits(config)
    check_finished(config, flawless, kept)
    assert inspect(config.cache_uri("default")) == inspect(flawless.cache_uri("default"))


@pytest.mark.e2e
def test_an_object_store_killed_in_the_middle_of_training(
    object_store, make_config: MakeConfig, flawless: DistillConfig
):
    config = make_config(object_store.make_bucket())
    source, target = Store(flawless.cache_uri("default")), Store(config.cache_uri("default"))
    for name in source.sizes(recursive=True):
        target.write(name, source.read(name))
    checkpoints = Store(config.checkpoints_uri("default"))
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(train_student, config)
        while not any("/checkpoint_" in name for name in checkpoints.sizes(recursive=True)):
            assert job.running()
            time.sleep(0.05)
        with object_store.killed():
            time.sleep(5)
            assert not job.done()
        summary = job.result()
    assert summary["steps"] == config.train.steps  # no restart: max_failures is 0
    log = Store(config.student_uri("default")).read("training_log.jsonl").splitlines()
    assert [json.loads(line)["step"] for line in log] == list(range(1, config.train.steps + 1))
