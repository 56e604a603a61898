"""The sections generate and judge: what is refused, and that no key stands in them or in a message."""

from typing import Any

import pytest

from rskd.config import DistillConfig, validate_config
from rskd.errors import ConfigError

MINIMAL = {"name": "n", "corpus": {"source": {"kind": "python_docs"}}, "teacher": {"model": "t"}}
SETS = {"dolly": {"kind": "dolly", "uri": "data/dolly"}}
JUDGE = {"endpoint": "https://api.example.com/v1/", "model": "m"}
KEY = "sk-proj-abcDEF123"


def config(**sections: Any) -> DistillConfig:
    return validate_config(MINIMAL | sections)


def test_both_are_off_by_default():
    assert config().generate is None
    assert config().judge is None


def test_the_defaults_are_the_papers_protocol_in_both_orders():
    found = config(generate={"prompt_sets": SETS}, judge=JUDGE)
    assert found.generate is not None
    assert found.judge is not None
    assert (found.generate.generations, found.generate.temperature, found.generate.top_p) == (5, 1.0, 1.0)
    assert found.judge.endpoint == "https://api.example.com/v1"
    assert found.judge.both_orders
    assert found.judge.api_key_env == "OPENAI_API_KEY"


@pytest.mark.parametrize(
    ("generate", "message"),
    [
        ({}, "generate.prompt_sets: missing"),
        ({"prompt_sets": {}}, "prompt_sets: is empty"),
        ({"prompt_sets": {"skipped": SETS["dolly"]}}, "the name skipped says"),
        ({"prompt_sets": {"a/b": SETS["dolly"]}}, "'a/b' cannot be a name"),
        ({"prompt_sets": {"a": {"kind": "other", "uri": "x"}}}, "kind"),
        ({"prompt_sets": SETS, "temperature": 0}, "generations=5 at temperature=0"),
        ({"prompt_sets": SETS, "temperature": 0, "generations": 1, "top_p": 0.9}, "top_p=0.9 is not used"),
        ({"prompt_sets": SETS, "engine_args": {"enforce_eager": True}}, "not used by engine transformers"),
        ({"prompt_sets": SETS, "engine": "vllm", "batch_answers": 3}, "not used by engine vllm"),
        ({"prompt_sets": SETS, "checkpoints": {"teacher": "x"}}, "the teacher's"),
        ({"prompt_sets": SETS, "checkpoints": {"default": "x"}}, "the name of a student"),
    ],
)
def test_what_generate_refuses(generate: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        config(generate=generate)


def test_vllm_needs_ray():
    sections = {"ray": {"enabled": False}, "train": {"workers": 0}}
    with pytest.raises(ConfigError, match=r"generate\.engine=vllm needs Ray"):
        config(generate={"prompt_sets": SETS, "engine": "vllm"}, **sections)


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        ({"endpoint": "localhost:8000"}, "is no URL"),
        ({"endpoint": "ftp://host/v1"}, "is no URL"),
        ({"endpoint": "https://host/v1/chat/completions"}, "names an operation"),
        ({"endpoint": f"https://host/v1?api-key={KEY}"}, "may hold a key"),
        ({"endpoint": f"https://{KEY}@host/v1"}, "may hold a key"),
        ({"endpoint": f"https://user:{KEY}@host/v1"}, "may hold a key"),
        ({"api_key_env": KEY}, "is no name of an environment variable"),
        ({"api_key": KEY}, "api_key: unknown key"),
        ({"model": ""}, "model"),
        ({"concurrency": 0}, "concurrency"),
        ({"max_tokens_spent": 0}, "max_tokens_spent"),
    ],
)
def test_what_judge_refuses_never_showing_a_key(judge: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message) as raised:
        config(judge=JUDGE | judge)
    assert KEY not in str(raised.value)
