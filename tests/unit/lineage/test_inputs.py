from pathlib import Path

import pytest

from rskd.config import validate_config
from rskd.errors import ConfigError, MissingOutputError
from rskd.estimate import estimate, probe
from rskd.jobs.compare_gradients import compare_gradients
from rskd.jobs.evaluate import evaluate_students
from rskd.jobs.report import write_report
from rskd.jobs.train import train_student

STAGES = {
    "train": lambda config: train_student(config, "default"),
    "evaluate": evaluate_students,
    "report": write_report,
    "gradients": lambda config: compare_gradients(config, "default", windows=8),
    "estimate": estimate,
    "probe": lambda config: probe(config, windows=1),
}


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
def test_a_path_that_does_not_exist_is_told_before_an_output_that_it_is_needed_for(
    stage, tiny_teacher_dir: Path, tmp_path: Path
):
    (tmp_path / "text.txt").write_text("text")

    def run(*, text: str = "text.txt", teacher: str = str(tiny_teacher_dir)):
        stage(
            validate_config(
                {
                    "name": "n",
                    "storage": {"root": str(tmp_path / "home")},
                    "corpus": {"source": {"kind": "text", "uri": str(tmp_path / text)}, "seq_len": 16},
                    "teacher": {"model": teacher},
                    "tracking": {"enabled": False},
                }
            )
        )

    with pytest.raises(MissingOutputError, match=r"run rskd (pack|cache|evaluate)"):
        run()
    with pytest.raises(ConfigError, match=r"corpus\.source\.uri=.*absent"):
        run(text="absent")
    with pytest.raises(ConfigError, match="model /absent"):
        run(teacher="/absent")
