"""The study of gradients as a user runs it: what it writes, and what it says of a wrong call."""

import json
import shutil
from pathlib import Path

import pytest
from made_corpora import write_corpus

from rskd import records
from rskd.config import DistillConfig, validate_config
from rskd.errors import ConfigError, MissingOutputError
from rskd.jobs.compare_gradients import compare_gradients
from rskd.lineage.inputs import Inputs
from rskd.lineage.student import open_source, student_recipe
from rskd.storage import Store
from rskd.student.checkpoint import RESULT_FILE


@pytest.fixture
def config(tmp_path: Path, tiny_teacher_dir: Path) -> DistillConfig:
    return validate_config(
        {
            "name": "tiny",
            "storage": {"root": str(tmp_path)},
            "corpus": {"source": {"kind": "python_docs"}, "seq_len": 16},
            "teacher": {"model": str(tiny_teacher_dir), "dtype": "float32"},
            "objective": {"kind": "full_kd"},
            "students": {"one": {}, "two": {}},
        }
    )


def train(config: DistillConfig, student: str, teacher: Path) -> None:
    """A student that is its teacher."""
    shutil.copytree(teacher, config.student_uri(student))
    inputs = Inputs(config)
    recipe = student_recipe(inputs, student, open_source(inputs, student), balances_router=False)
    records.write(Store(config.student_uri(student)), RESULT_FILE, {"recipe": recipe})


def test_record_and_page(config: DistillConfig, tiny_teacher_dir: Path):
    write_corpus(config, windows=20)
    train(config, "two", tiny_teacher_dir)
    found = compare_gradients(config, "two", windows=19)
    assert found["tokens"] == 16 * 16  # whole groups
    assert found["samplings"]["top_k 12"]["unique_tokens"] == 12
    assert found["systematic_beside_random"]
    folder = Path(config.home, "gradient_similarity")
    assert json.loads((folder / "two.json").read_text())["samplings"].keys() == found["samplings"].keys()
    page = (folder / "two.html").read_text()
    assert found["page"] == str(folder / "two.html")
    assert {"top_k 300", "58°, 2.4", found["provenance"]["date"], "systematic 22"} <= set(
        page.replace("<", ">").split(">")
    )


def test_what_is_wrong_is_said_in_one_line(config: DistillConfig, tiny_teacher_dir: Path):
    with pytest.raises(ConfigError, match="student nobody is not in students"):
        compare_gradients(config, "nobody", windows=16)
    with pytest.raises(MissingOutputError, match="run rskd pack"):
        compare_gradients(config, "one", windows=16)
    write_corpus(config, windows=20)
    with pytest.raises(ConfigError, match="--windows 21 exceeds the 20 windows"):
        compare_gradients(config, "one", windows=21)
    with pytest.raises(MissingOutputError, match="run rskd train --student one"):
        compare_gradients(config, "one", windows=16)
