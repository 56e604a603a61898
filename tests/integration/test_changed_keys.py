"""Every key of the configuration, changed after a finished run: each stage runs again, is rightly unaffected, or
refuses by the name of that key; and `status` says so beforehand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
from changed_keys import CASES, Case, keys, table
from tiny_runs import STAGES, tiny_settings
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from rskd.config import DistillConfig, validate_config
from rskd.errors import ConfigError, RskdError
from rskd.lineage import status as lineage_status
from rskd.lineage.status import status

ORDER = ("pack", "cache", "train", "evaluate")  # as in the table
HEAVY = {"student.preset"}  # of which the outcome of the training is taken from `status`


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_teacher_dir: Path) -> Path:
    """A folder with texts, models, and a finished run in `store`."""
    root = tmp_path_factory.mktemp("changed_keys")
    names = sorted(topics)
    for file, chosen in (("text.jsonl", names[:10]), ("other.jsonl", names[10:20])):
        lines = [json.dumps({"text": topics[name], "also": topics[name]}) for name in chosen]
        (root / file).write_text("\n".join(lines))
    shutil.copytree(tiny_teacher_dir, root / "teacher")
    shutil.copytree(tiny_teacher_dir, root / "other-teacher")
    model = AutoModelForCausalLM.from_pretrained(root / "teacher")
    model.lm_head.weight.data += 0.01
    model.save_pretrained(root / "other-teacher")
    tokenizer, architecture = (
        AutoTokenizer.from_pretrained(root / "teacher"),
        AutoConfig.from_pretrained(root / "teacher"),
    )
    for name, layers in (("student", 1), ("other-student", 2)):
        architecture.num_hidden_layers = layers
        architecture.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    config = validate_config(settings(root, root / "store"))
    for stage in ORDER:
        assert STAGES[stage](config)["skipped"] is False
    assert [one.then for one in status(config)] == ["skipped"] * 4 + ["runs"]  # the report is always written
    return root


def settings(root: Path, store: Path) -> dict[str, Any]:
    return tiny_settings(
        root,
        root / "teacher",
        storage={"root": str(store)},
        corpus={"source": {"kind": "jsonl", "uri": str(root / "text.jsonl")}},
        sampling={"statistics": ["label_logprob"]},
        student={"model": str(root / "student")},
    )


def changed(root: Path, store: Path, key: str, case: Case) -> dict[str, Any]:
    content = settings(root, store)
    for name, value in {key: case.value, **case.others}.items():
        *sections, last = name.split(".")
        nested = content
        for section in sections:
            nested = nested.setdefault(section, {})
        nested[last] = value.format(root=root) if isinstance(value, str) else value
    return content


def test_the_table_has_every_key_of_the_configuration_and_is_in_the_readme():
    assert list(CASES) == list(keys())
    assert table() in (Path(lineage_status.__file__).parent / "README.md").read_text()


@pytest.mark.parametrize("key", CASES)
def test_each_stage_after_a_change(key: str, world: Path, tmp_path: Path):
    case = CASES[key]
    store = shutil.copytree(world / "store", tmp_path / "store")
    content = changed(world, store, key, case)
    if case.outcome is None:
        with pytest.raises(ConfigError, match=case.named or key):
            validate_config(content)
        return
    config = validate_config(content)
    foretold = [one.then for one in status(config)]
    # The last stage first, so that none sees what an earlier one has made anew.
    found = {stage: outcome(stage, config, key, case, foretold) for stage in reversed(ORDER)}
    assert "".join(found[stage] for stage in ORDER) == case.outcome
    for stage, then in zip(ORDER, foretold):
        expected = {"-": {"skipped"}, "a": {"runs"}, "r": {"refused", "decided later", "runs"}}[found[stage]]
        assert then in expected, stage


def outcome(stage: str, config: DistillConfig, key: str, case: Case, foretold: list[str]) -> str:
    """How a stage takes the change; a refusal must be one line that names the key."""
    if key in HEAVY and stage == "train":
        return {"runs": "a", "skipped": "-"}[foretold[ORDER.index(stage)]]
    try:
        return "-" if STAGES[stage](config)["skipped"] else "a"
    except RskdError as error:
        refusal = str(error)
    assert (case.named or key) in refusal
    assert "\n" not in refusal
    return "r"
