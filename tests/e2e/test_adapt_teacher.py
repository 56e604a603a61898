"""`python -m flows.adapt_teacher`: a teacher that knows the corpus better, and is used like any other."""

import json
import os
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def test_an_adapted_teacher_knows_the_corpus_better(tmp_path: Path, tiny_teacher_dir: Path):
    (tmp_path / "text").mkdir()
    for name in sorted(topics)[:12]:
        (tmp_path / "text" / f"{name}.txt").write_text(topics[name])
    config = {
        "name": "tiny",
        "storage": {"root": str(tmp_path / "store")},
        "corpus": {
            "source": {"kind": "text", "uri": str(tmp_path / "text")},
            "seq_len": 32,
            "max_windows": 64,
            "eval_windows": 8,
        },
        "teacher": {"model": str(tiny_teacher_dir), "dtype": "float32"},
        "train": {"steps": 4, "global_batch": 8, "precision": "float32"},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    done = subprocess.run(
        [sys.executable, "-m", "flows.adapt_teacher", str(path), "--steps=60", "--lr=0.003", "--compare", "--json"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"PREFECT_HOME": str(tmp_path / "prefect")},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)

    adapted = Path(result["adapted_teacher"]["uri"])
    assert adapted == tmp_path / "store" / "tiny" / "students" / "adapted_teacher"
    assert AutoModelForCausalLM.from_pretrained(adapted).config.num_hidden_layers == 2
    assert len(AutoTokenizer.from_pretrained(adapted)) == 384
    assert result["adapted"]["teacher"]["lm_loss"] < result["as it was"]["teacher"]["lm_loss"] - 0.3
    assert set(result["adapted"]) == {"teacher", "default", "skipped"}
